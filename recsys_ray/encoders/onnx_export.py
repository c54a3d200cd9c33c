"""Text backbones as ONNX graphs, in float32 and in int8, kept only where they stay near to the model.

Weights are rounded to seven bits a column and activations to eight bits a token: products of two such pairs fit the
16 bits that processors without VNNI add them up in, so the same graph gives the same integers on all of them.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import MissingExtraError, NotApplicable
from recsys_ray.core.progress import say
from recsys_ray.encoders.onnx_text import FULL_FILE, INT8_FILE, TOKENIZER_FILE, Fidelity, OnnxFacts, load_onnx_text
from recsys_ray.encoders.text import TextBackbone, load_text_backbone
from recsys_ray.encoders.threads import torch_threads

MIN_MEAN_COSINE, MIN_COSINE, MAX_RECALL_LOSS = 0.99, 0.97, 0.01
_OPSET = 17
_WEIGHT_STEPS, _ACTIVATION_STEPS, _ZERO = 63, 127, 128
_MOST_BYTES = 1_900_000_000  # a protobuf file ends at 2 GB
_BATCH = 32
_TEXTS, _QUESTIONS, _NEAREST = 500, 200, 10


def export_text(folder: Path, texts: Sequence[str], target: Path, seed: int = 0) -> OnnxFacts:
    """Export a saved backbone, compare the exports with it and keep those that are near enough.

    Args:
        folder: What `TextBackbone.save` wrote.
        texts: Of the catalogue; up to 500 of them, drawn by `seed`, are compared.
        target: An empty folder.
        seed: Of the draw.

    Raises:
        MissingExtraError: When onnx or ONNX Runtime is not installed.
        NotApplicable: When the model cannot be exported.
    """
    backbone = load_text_backbone(str(folder), precision="fp32")
    tokenizer = _tokenizer(backbone)
    tokenizer.save(str(target / TOKENIZER_FILE))
    _write_full(backbone, target / FULL_FILE)
    quantise(target / FULL_FILE, target / INT8_FILE)
    OnnxFacts(backbone.id, backbone.dim, {}, {}).save(target)  # the loader reads `dim`
    sample = np.random.default_rng(seed).permutation(len(texts))[:_TEXTS]
    with torch_threads(1):
        comparison = _Comparison(backbone, [texts[int(row)] for row in sample])
    fidelity, refused = {}, {}
    for name in (FULL_FILE, INT8_FILE):
        measured = comparison.of(load_onnx_text(target, name))
        reason = _too_far(measured)
        if reason:
            refused[name] = reason
            (target / name).unlink()
            say(f"query encoder: {name} refused, {reason}")
        else:
            fidelity[name] = measured
    facts = OnnxFacts(backbone.id, backbone.dim, fidelity, refused)
    facts.save(target)
    return facts


def quantise(source: Path, target: Path) -> None:
    """Write a graph whose products with weights are in int8.

    Each x W becomes s_row s_column (round(x / s_row) . round(W / s_column)), with s_row = max |x_row| / 127 found while
    it runs and s_column = max |W_column| / 63. Products of two activations, and everything else, stay in float32.

    Raises:
        MissingExtraError: When onnx is not installed.
    """
    onnx = _onnx()
    model = onnx.load(source)
    weights = {one.name: one for one in model.graph.initializer}
    rewritten = _Rewritten(onnx)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            rewritten.add_product(node, onnx.numpy_helper.to_array(weights.pop(node.input[1])))
        else:
            rewritten.nodes.append(node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(rewritten.nodes)
    model.graph.initializer.extend([*weights.values(), *rewritten.constants])
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, target)


class _Rewritten:
    """The nodes and constants of a quantised graph, as far as they are made."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._quantised: set[str] = set()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        for name, value in (
            ("q.one", np.float32(1)),
            ("q.steps", np.float32(_ACTIVATION_STEPS)),
            ("q.tiny", np.float32(1e-9)),
            ("q.zero", np.uint8(_ZERO)),
        ):
            self._constant(name, np.array(value))

    def add_product(self, node: Any, weight: FloatArray) -> None:
        """The product of `node` with a weight that is not used elsewhere."""
        inputs, name, output = node.input[0], node.input[1], node.output[0]
        if inputs not in self._quantised:  # query, key and value read the same
            self._quantise(inputs)
        scale = np.maximum(np.abs(weight).max(0) / _WEIGHT_STEPS, 1e-12)
        self._constant(f"{name}.q", np.rint(weight / scale).astype(np.int8))
        self._constant(f"{name}.s", (scale / _ACTIVATION_STEPS).astype(np.float32))
        factors = [f"{inputs}.q", f"{name}.q", "q.one", f"{name}.s", "q.zero"]
        self._node("MatMulIntegerToFloat", factors, f"{output}.f", domain="com.microsoft")
        self._node("Mul", [f"{output}.f", f"{inputs}.max"], output)

    def _quantise(self, name: str) -> None:
        self._node("Abs", [name], f"{name}.abs")
        self._node("ReduceMax", [f"{name}.abs"], f"{name}.top", axes=[-1], keepdims=1)
        self._node("Max", [f"{name}.top", "q.tiny"], f"{name}.max")
        self._node("Div", ["q.steps", f"{name}.max"], f"{name}.inverse")
        self._node("Mul", [name, f"{name}.inverse"], f"{name}.scaled")
        self._node("QuantizeLinear", [f"{name}.scaled", "q.one", "q.zero"], f"{name}.q")
        self._quantised.add(name)

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [output], **attributes))

    def _constant(self, name: str, value: Any) -> None:
        self.constants.append(self._onnx.numpy_helper.from_array(value, name))


class _Pooled(nn.Module):
    """A backbone on texts of equally many tokens: nothing is padded, so nothing is masked."""

    def __init__(self, backbone: TextBackbone) -> None:
        super().__init__()
        self.model = backbone.model
        self.cls = backbone.pooling == "cls"

    def forward(self, input_ids: Int[Tensor, "n L"]) -> Float[Tensor, "n F"]:
        hidden = self.model(input_ids=input_ids).last_hidden_state
        return F.normalize(hidden[:, 0] if self.cls else hidden.mean(1), dim=-1)


class _Comparison:
    """What the model makes of a sample of texts, and of the first half of some of them as questions."""

    def __init__(self, backbone: TextBackbone, texts: list[str]) -> None:
        self._texts = texts
        self._questions = [_first_half(text) for text in texts[:_QUESTIONS]]
        self._vectors = backbone.encode(texts, _BATCH)
        self._full_recall = self._recall(backbone.encode(self._questions, _BATCH))

    def of(self, encoder: Any) -> Fidelity:
        cosines = (encoder.encode(self._texts, _BATCH) * self._vectors).sum(1)
        recall = self._recall(encoder.encode(self._questions, _BATCH))
        mean, least = float(cosines.mean()), float(cosines.min())
        return Fidelity(round(mean, 6), round(least, 6), recall, self._full_recall, len(self._texts))

    def _recall(self, questions: FloatArray) -> float:
        """Share of questions whose own text has fewer than ten others before it."""
        scores = questions @ self._vectors.T
        own = scores[np.arange(len(questions)), np.arange(len(questions))]
        return round(float(((scores > own[:, None]).sum(1) < _NEAREST).mean()), 5)


def _write_full(backbone: TextBackbone, path: Path) -> None:
    _onnx()
    num_bytes = sum(one.numel() * 4 for one in backbone.model.parameters())
    if num_bytes > _MOST_BYTES:
        raise NotApplicable(f"query encoder: {num_bytes / 1e9:.1f} GB of weights do not fit one ONNX file")
    backbone.model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        with warnings.catch_warnings():
            # The exporter that needs no package beside onnx calls itself old, and guesses aloud about shapes that are
            # right: the comparison after it is what counts.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Pooled(backbone).eval(),
                (torch.full((2, 7), 1, dtype=torch.long),),
                str(path),
                input_names=["input_ids"],
                output_names=["vector"],
                dynamic_axes={"input_ids": {0: "n", 1: "L"}, "vector": {0: "n"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    except Exception as error:  # whatever a model does that no graph can hold, torch still answers with it
        raise NotApplicable(f"query encoder: this model cannot be exported to ONNX: {error}") from None


def _tokenizer(backbone: TextBackbone) -> Any:
    if not backbone.tokenizer.is_fast:
        raise NotApplicable("query encoder: its tokenizer has no fast form, so it is not exported to ONNX")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(backbone.tokenizer.backend_tokenizer.to_str())
    tokenizer.enable_truncation(backbone.max_tokens)
    tokenizer.no_padding()
    if not tokenizer.encode("").ids:
        raise NotApplicable("query encoder: its tokenizer makes no token of an empty text, so it is not exported")
    return tokenizer


def _too_far(measured: Fidelity) -> str:
    """Why an export is not near enough; empty where it is."""
    loss = measured.full_recall - measured.recall
    if measured.mean_cosine < MIN_MEAN_COSINE or measured.min_cosine < MIN_COSINE:
        allowed = f"at least {MIN_MEAN_COSINE} and {MIN_COSINE}"
        return f"cosine to the model {measured.mean_cosine} on average, {measured.min_cosine} at least; {allowed}"
    if loss > MAX_RECALL_LOSS * measured.full_recall:
        return f"recall@{_NEAREST} {measured.recall} where the model has {measured.full_recall}"
    return ""


def _first_half(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, (len(words) + 1) // 2)])


def _onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError:
        raise MissingExtraError("Exporting the query encoder", "cpu") from None
    return onnx
