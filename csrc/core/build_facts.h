// One line on how this library was built, kept as text in its file. `wsfast info` reads it there,
// so that it is known of a library that cannot be loaded too. Included once per library; setup.py
// defines the values.
#pragma once

#define WS_TEXT_OF(...) #__VA_ARGS__
#define WS_TEXT(...) WS_TEXT_OF(__VA_ARGS__)

#ifdef __CUDACC__
#define WS_CUDA_FACTS                                                     \
  "; cuda=" WS_TEXT(__CUDACC_VER_MAJOR__) "." WS_TEXT(__CUDACC_VER_MINOR__) \
  "; architectures=" WS_TEXT(WSFAST_ARCHITECTURES)
#else
#define WS_CUDA_FACTS ""
#endif

#ifdef __clang__
#define WS_COMPILER __VERSION__
#else
#define WS_COMPILER "GCC " __VERSION__
#endif

__attribute__((used)) static const char ws_build_facts[] =
    "wsfast build: version=" WS_TEXT(WSFAST_VERSION) "; torch=" WS_TEXT(WSFAST_BUILT_WITH_TORCH)
    "; compiler=" WS_COMPILER WS_CUDA_FACTS;
