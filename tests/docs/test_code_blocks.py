"""Every code block of the README and the documentation runs, page by page, in order.

A page's Python blocks share one namespace. A block that cannot run here has a comment before it,
``<!-- skip: next "reason" -->``, and is counted below. Of shell blocks, calls of ``wsfast`` have to
parse and scripts have to exist; they are not run.
"""

import shlex
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
import timm
import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import wsfast.cam
from wsfast.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SKIPPED = {"docs/moving/grad_cam.md": 1, "docs/moving/torchcam.md": 1}


def check_commands(example: Example) -> None:
    """Raise unless the shell block's calls of wsfast parse and its scripts exist."""
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["wsfast"]:
            try:
                build_parser().parse_args(words[1:])
            except SystemExit as error:
                raise AssertionError(f"wsfast does not take: {line}") from error
        elif words and words[0].startswith("./"):
            assert (ROOT / words[0]).is_file(), f"no such script: {words[0]}"


PARSERS = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser(language="bash", evaluator=check_commands),
        SkipParser(),
    ]
)


def readme_variables() -> dict[str, Any]:
    """What the README's blocks take as given."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator)
    return {
        "images": images,
        "images_255": images * 255,
        "labels": torch.tensor([1, 2]),
        "ids": torch.arange(2),
        "cams": torch.rand(2, 64, 64, generator=generator),
        "logits": torch.rand(2, 2, 64, 64, generator=generator),
        "epoch": 0,
    }


def run_page(path: Path, variables: dict[str, Any]) -> int:
    """Run a page's blocks; the number of skipped ones."""
    document = PARSERS.parse(path)
    document.namespace.update(variables)
    skipped = 0
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest:
            skipped += 1
    return skipped


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # blocks may write files
    variables = {}
    if path.name == "README.md":
        variables = readme_variables()
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
        monkeypatch.setattr(wsfast.cam, "load_attention_model", lambda: vit)  # a download
    name = str(path.relative_to(ROOT))
    with torch.random.fork_rng():
        assert run_page(path, variables) == SKIPPED.get(name, 0)


def test_a_wrong_block_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, {})


def test_a_wrong_command_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nwsfast localize photos/ --no-such-option\n```\n")
    with pytest.raises(AssertionError, match="no-such-option"):
        run_page(page, {})
