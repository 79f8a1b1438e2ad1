"""The page on models of transformers runs as it is written."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "huggingface.md"


def test_every_block_of_code_on_the_page_runs(transformers):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    around = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), around)
