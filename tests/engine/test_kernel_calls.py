"""Attention by each kernel against its formula, in float64, one pair of a query and a key after the other."""

import sys
from threading import Event, Thread, current_thread
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, _sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from repshift import RepresentationError
from repshift.kernel_backends import How, _by_operator, by_torch
from repshift.kernel_calls import UseKernel, attend, with_bias_channel
from repshift.kernels import DEVICES

SHAPE = (2, 3, 5, 12)  # images, heads, tokens, channels
HERE = ("flash", "math", "flex", "flash2")


def formula(query, key, value, bias=None, scale=None):
    """``softmax(scale q k + bias) v`` in float64."""
    query, key, value = (each.double() for each in (query, key, value))
    logits = torch.einsum("bhqc,bhkc->bhqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        hidden = bias.dtype == torch.bool
        logits = torch.where(bias, logits, -torch.inf) if hidden else logits + bias.double()
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhqk,bhkc->bhqc", weights / weights.sum(-1, keepdim=True), value)


class FlashAttn(ModuleType):
    """Stands for the package: its layout, its dtypes, no mask; computes by the formula."""

    def __init__(self):
        super().__init__("flash_attn")
        self.calls = []

    def flash_attn_func(self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert q.dtype == k.dtype == v.dtype
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert q.shape[-1] == k.shape[-1] == v.shape[-1]
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        self.calls.append((q.shape, softmax_scale))
        swapped = (each.transpose(1, 2) for each in (q, k, v))
        return formula(*swapped, scale=softmax_scale).to(q.dtype).transpose(1, 2)


@pytest.fixture
def flash_attn(monkeypatch):
    package = FlashAttn()
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(DEVICES, "flash2", ("cpu", "cuda"))
    return package


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(3)]


SIZES = torch.tensor([[1.0, 4.0, 2.0, 1.0, 9.0], [3.0, 1.0, 0.0, 1.0, 6.0]])  # the second image has padding
BIASES = {
    "none": None,
    "sizes": SIZES.log()[:, None, None],
    "sizes of all alike": SIZES[:1].log()[:, None, None],
    "sizes, once for each query and head": SIZES.bfloat16().log()[:, None, None].expand(2, 3, 5, 5),
    "padding": (SIZES > 0)[:, None, None],
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("kernel", HERE)
def test_every_kernel_computes_attention_with_what_each_key_counts(flash_attn, given, kernel, bias):
    half = kernel == "flash2"
    given = [each.bfloat16() if half else each for each in given]
    if bias is not None and bias.dtype == torch.float32 and half:
        bias = bias.bfloat16()
    elif bias is not None and bias.dtype == torch.bfloat16 and not half:
        bias = bias[:, :1, :1].float().expand(bias.shape)
    with torch.no_grad():
        found = attend(kernel, *given, attn_mask=bias)
    assert found.shape == SHAPE
    assert found.dtype == given[0].dtype
    assert torch.allclose(found.double(), formula(*given, bias), atol=0.03 if half else 1e-6)
    if half:
        channels = 12 if bias is None else 16
        assert flash_attn.calls == [((2, 5, 3, channels), None if bias is None else 12**-0.5)]


@pytest.mark.parametrize("kernel", ["flash", "math", "flex"])
def test_kernels_that_take_a_mask_take_one_of_queries_and_keys(given, kernel):
    bias = torch.randn(1, 3, 5, 5)
    for mask in (bias, bias[0, 0], bias > -0.5):
        with torch.no_grad():
            assert torch.allclose(attend(kernel, *given, mask).double(), formula(*given, mask), atol=1e-6)


@pytest.mark.parametrize("kernel", ["flash", "math", "flex"])
def test_a_causal_mask_and_a_scale_are_kept(given, kernel):
    with torch.no_grad():
        found = attend(kernel, *given, is_causal=True, scale=0.7)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.allclose(found.double(), formula(*given, causal, scale=0.7), atol=1e-6)


@pytest.mark.parametrize("channels", [5, 7, 8, 12])
def test_one_channel_more_is_the_bias(channels):
    query, key, value = (torch.randn(2, 3, 5, channels, dtype=torch.float64) for _ in range(3))
    bias, scale = SIZES.clamp(min=1).log().double(), 0.3
    wide = with_bias_channel(query, key, value, bias, scale)
    assert all(each.shape == (2, 3, 5, 8 if channels < 8 else 16) for each in wide)
    found = F.scaled_dot_product_attention(*wide, scale=scale)[..., :channels]
    assert torch.allclose(found, formula(query, key, value, bias[:, None, None], scale), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hidden_keys_weigh_nothing_and_have_no_gradient_that_is_not_a_number(dtype):
    query, key, value = (torch.randn(SHAPE, dtype=dtype, requires_grad=True) for _ in range(3))
    wide = with_bias_channel(query, key, value, SIZES.log(), 12**-0.5)
    logits = (wide[0].float() @ wide[1].float().mT) * 12**-0.5
    assert logits.isfinite().all()
    weights = logits.softmax(-1)
    assert (weights[1, :, :, 2] == 0).all()
    (weights @ wide[2].float()).square().sum().backward()
    assert all(each.grad.isfinite().all() for each in (query, key, value))


def test_gradients_go_through_one_channel_more():
    given = [torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    bias = torch.randn(1, 4, dtype=torch.float64)
    folded = lambda *each: F.scaled_dot_product_attention(*with_bias_channel(*each, bias, 0.5), scale=0.5)  # noqa: E731
    assert torch.autograd.gradcheck(folded, given)


def test_threads_leave_torchs_choice_to_others(monkeypatch, given):
    """The second thread comes while the first is within, which goes before the second does."""
    within, both, seen = Event(), Event(), {}

    def slow(*each, **options):
        if current_thread() is first:
            within.set()
            both.wait(0.3)  # for the other one, if it can come so far
        else:
            both.set()
            first.join(5)
        seen[current_thread()] = _cur_sdpa_kernel_backends()
        return each[0]

    before = _cur_sdpa_kernel_backends()
    monkeypatch.setattr("repshift.kernel_backends.SDPA", slow)
    elsewhere = [each.to("meta") for each in given]  # on CPUs there is nothing to switch
    how = How(None, 0.0, False, None, False)
    first, second = (Thread(target=by_torch, args=(kernel, *elsewhere, how)) for kernel in ("flash", "math"))
    first.start()
    within.wait(5)
    second.start()
    second.join()
    found, after = [seen[each] for each in (first, second)], _cur_sdpa_kernel_backends()
    _sdpa_kernel(before)
    assert found == [[SDPBackend.FLASH_ATTENTION], [SDPBackend.MATH]]
    assert after == before


# --- in a program -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_operators_are_told_the_same(given, kernel, bias):
    if bias is not None and bias.dtype == torch.bfloat16:
        bias = bias[:, :1, :1].float().expand(bias.shape)
    found = _by_operator(kernel, *given, How(bias, 0.0, False, None, False))
    assert torch.allclose(found.double(), formula(*given, bias), atol=1e-6)


def test_operators_compute_in_what_autocast_says(given):
    with torch.autocast("cpu", torch.bfloat16):
        assert _by_operator("flash", *given, How(None, 0.0, False, None, False)).dtype == torch.bfloat16


@pytest.mark.parametrize("mask", [torch.float32, torch.bool])
def test_rows_of_a_mask_begin_where_a_kernel_of_gpus_can_read_them(monkeypatch, mask):
    seen = []
    monkeypatch.setattr("repshift.kernel_backends.computed_dtype", lambda query: query.dtype)  # none on meta

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten._scaled_dot_product_efficient_attention:
                seen.append(args[3])
            return func(*args, **(kwargs or {}))

    with Watch(), torch.device("meta"):  # which has the shapes and strides of a GPU
        given = [torch.empty(2, 3, 197, 64, dtype=torch.bfloat16) for _ in range(3)]
        bias = torch.empty(2, 1, 1, 197, dtype=mask)
        _by_operator("efficient", *given, How(bias, 0.0, False, None, False))
    assert (seen[0].shape, seen[0].dtype) == ((2, 3, 197, 197), torch.bfloat16)
    assert all(stride % 16 == 0 for stride in seen[0].stride()[:3])


@pytest.mark.parametrize("kernel", ["flash3", "flash4"])
def test_a_program_does_not_run_another_flash_attention(given, kernel):
    with pytest.raises(RepresentationError, match="a program would run torch's own FlashAttention"):
        _by_operator(kernel, *given, How(None, 0.0, False, None, False))


# --- what is refused ----------------------------------------------------------------------------------------------


def test_the_package_is_not_given_what_it_cannot_do(flash_attn, given):
    half = [each.bfloat16() for each in given]
    wide = [torch.zeros(1, 1, 2, 264, dtype=torch.bfloat16)] * 3
    full = [torch.zeros(1, 1, 2, 256, dtype=torch.bfloat16)] * 3
    fewer = [half[0], half[1][:, :, :4], half[2][:, :, :4]]
    for refused, options, message in (
        (given, {}, "it computes in float16 and bfloat16, and the queries are torch.float32"),
        (wide, {}, "it takes heads of up to 256 channels, and there are 264"),
        (full, {"attn_mask": torch.zeros(1, 1, 1, 2)}, "up to 256 channels, and there are 264"),
        (half, {"attn_mask": torch.zeros(1, 1, 5, 5)}, "it takes no bias of queries and keys"),
        (half, {"attn_mask": torch.zeros(5, 5)}, "it takes no bias of queries and keys"),
        (fewer, {"is_causal": True}, "a causal mask of other numbers of queries and keys"),
    ):
        with pytest.raises(RepresentationError, match=message):
            attend("flash2", *refused, **options)
    assert flash_attn.calls == []


def test_autocast_gives_the_package_half_precision(flash_attn, given):
    with torch.autocast("cpu", torch.bfloat16):
        assert attend("flash2", *given).dtype == torch.bfloat16
    assert len(flash_attn.calls) == 1


@pytest.mark.parametrize("kernel", ["efficient", "cudnn", "flash2", "flash3", "flash4"])
def test_a_kernel_of_gpus_is_not_replaced_on_a_cpu(given, kernel):
    with pytest.raises(
        RepresentationError, match=r"it needs a CUDA device, and the model runs on cpu\. Choose another"
    ):
        attend(kernel, *given)


def test_what_the_kernel_of_a_cpu_lacks_is_not_replaced(given):
    bias = torch.zeros(1, 1, given[0].shape[2], given[1].shape[2], requires_grad=True)
    narrow = given[2][..., :-1]
    for values, options, why in (
        (given[2], {"dropout_p": 0.5}, "on a CPU it drops no weights"),
        (given[2], {"attn_mask": bias}, "it computes no gradient of a bias"),
        (narrow, {}, f"{given[2].shape[-1]} channels and values {narrow.shape[-1]}"),
    ):
        with pytest.raises(RepresentationError, match=f"Attention by 'flash' cannot serve this: .*{why}"):
            attend("flash", *given[:2], values, **options)


@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_nothing_is_switched_on_a_cpu(monkeypatch, given, kernel):
    monkeypatch.setattr("repshift.kernel_backends.sdpa_kernel", None)
    assert torch.allclose(attend(kernel, *given).double(), formula(*given), atol=1e-6)


def test_flex_says_what_it_cannot_do(given):
    with pytest.raises(RepresentationError, match="it drops no weights of attention"):
        attend("flex", *given, dropout_p=0.1)
    with pytest.raises(RepresentationError, match="it computes no gradients on a CPU"):
        attend("flex", given[0].requires_grad_(), *given[1:])


def test_an_implementation_that_another_model_replaced_is_not_passed_by(monkeypatch, given):
    half = [each.bfloat16() for each in given]
    monkeypatch.setitem(DEVICES, "flash4", ("cpu",))
    monkeypatch.setattr("torch.nn.attention.current_flash_attention_impl", lambda: "FA3", raising=False)
    monkeypatch.setattr("repshift.kernel_calls.takes_no_mask", lambda kernel, device: True)
    for kernel in ("flash4", "flash"):
        with pytest.raises(RepresentationError, match="torch's FlashAttention is FA3 in this process"):
            attend(kernel, *half)


def test_a_module_that_asks_for_no_attention_is_not_passed_by(given):
    with pytest.raises(RepresentationError, match="did not ask torch for attention"):
        UseKernel("math").run(torch.relu, given[0])
