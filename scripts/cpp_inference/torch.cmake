# Targets torch::cpu and torch::c10 for an installed torch (a Python package or a libtorch folder).
#
# Not find_package(Torch): the configuration of a torch with CUDA demands a whole CUDA toolkit, which
# linking does not need. The CUDA part is opened at run time, where --device cuda asks for it.
set(TORCH_ROOT "" CACHE PATH "torch's folder with include/ and lib/; empty: the torch of Python3_EXECUTABLE")

if(NOT TORCH_ROOT)
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_FOUND)
    # Found, not imported: that takes seconds.
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -c
        "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE)
    set(TORCH_ROOT "${found}" CACHE PATH "" FORCE)
  endif()
endif()
if(NOT EXISTS "${TORCH_ROOT}/lib/libtorch_cpu.so")
  message(FATAL_ERROR
    "No torch with libtorch_cpu.so in '${TORCH_ROOT}' (Python: ${Python3_EXECUTABLE}). "
    "Give -DPython3_EXECUTABLE=/path/to/python with torch>=2.11, or -DTORCH_ROOT=/path/to/libtorch.")
endif()
message(STATUS "torch: ${TORCH_ROOT}")

foreach(name c10 torch_cpu)
  add_library(torch::${name} SHARED IMPORTED)
  set_target_properties(torch::${name} PROPERTIES
    IMPORTED_LOCATION "${TORCH_ROOT}/lib/lib${name}.so"
    INTERFACE_INCLUDE_DIRECTORIES "${TORCH_ROOT}/include;${TORCH_ROOT}/include/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS _GLIBCXX_USE_CXX11_ABI=1)
endforeach()
# torch's own dependencies (the CUDA runtime, ...) are found through its libraries when they run.
# RPATH, not RUNPATH: libraries opened at run time look there for libtorch_cuda.so too.
set_target_properties(torch::torch_cpu PROPERTIES
  INTERFACE_LINK_LIBRARIES torch::c10
  INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined,--disable-new-dtags,-rpath,${TORCH_ROOT}/lib")
