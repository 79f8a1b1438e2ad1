"""Text encoders of Hugging Face: BERT and what is built like it, with padding and without."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.huggingface_blocks import ATTENTION, why_no_bias
from repshift.backbones.huggingface_names import blocks_of, class_names, named, within_head
from repshift.backbones.refusals import CAUSAL
from repshift.companions import Companion
from repshift.errors import UnsupportedModelError
from repshift.layouts import TokenSequence
from repshift.participants import own_class
from repshift.sites import Operation, Site, Structure

CHUNKED = "its MLP runs on chunks of as many tokens each; build it with chunk_size_feed_forward=0"
EACH = "its head answers for every token"
# by class, the class of the blocks
_KINDS = {"bert": "Bert", "roberta": "Roberta", "xlm_roberta": "XLMRoberta", "camembert": "Camembert"}
_KINDS |= {"electra": "Electra", "ernie": "Ernie"}
FAMILIES = {f"{folder}.modeling_{folder}.{name}PreTrainedModel": f"{name}Layer" for folder, name in _KINDS.items()}
FAMILIES["data2vec.modeling_data2vec_text.Data2VecTextPreTrainedModel"] = "Data2VecTextLayer"
# heads that give an answer for every token, by how their names end
OF_EACH = ("MaskedLM", "PreTraining", "LMHeadModel", "CausalLM", "TokenClassification", "QuestionAnswering")


class TextEncoder:
    """BERT and encoders like it (RoBERTa, XLM-R, CamemBERT, ELECTRA; MiniLM is a BERT), alone and with heads.

    Positions are added before the blocks. The class token is never dropped; padding is told by the attention mask, and
    is behind the words.
    """

    serves = "transformers' BERT-like text encoders"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the families by the names of their classes."""
        return named(model, FAMILIES) is not None

    def structure(self, model: Any) -> Structure:
        """List the blocks and where their operations can be watched.

        Raises:
            UnsupportedModelError: If it is a decoder, or runs in chunks.
        """
        name = own_class(model).__name__
        chunks = getattr(model.config, "chunk_size_feed_forward", 0)
        for stands_in_the_way, why in ((model.config.is_decoder, CAUSAL), (chunks, CHUNKED)):
            if stands_in_the_way:
                raise UnsupportedModelError(f"{name} can be tracked by names of modules but not pruned: {why}.")
        described = within_head(model, partial(_described, kind=named(model, FAMILIES) or ""))
        each = any(known.endswith(OF_EACH) for known in class_names(model))
        return replace(described, needs_all=EACH) if each else described


TEXT = TextEncoder()


def _described(model: Any, kind: str) -> Structure:
    blocks = blocks_of(model, kind)
    heads: dict[str, Any] = {"heads": model.config.num_attention_heads}
    mask = Companion("attention_mask", "batch heads token token", 1, optional=True, padding=True, sizes=heads)
    return Structure(
        sites=tuple(_site(name) for name in blocks),
        layout=TokenSequence(1),
        embedding="embeddings.LayerNorm",  # the first to take features; before it there are numbers of words
        grid=None,
        tokens=None,
        companions=(mask,),
        bias="attention_mask",
        no_bias=partial(why_no_bias, model.config),
        restores=blocks[-1],
    )


def _site(name: str) -> Site:
    attn = Operation(f"{name}.attention", (f"{name}.attention.output.dropout",), summed=False)
    mlp = Operation(f"{name}.intermediate", (f"{name}.output.dropout",), summed=False)
    operations = {"attn": attn, "mlp": mlp, "block": Operation(name, (name,), on_stream=True)}
    return Site(name, operations, absent={"heads": ATTENTION})
