"""A GGUF file holds the model: read back it says the same, and llama.cpp would spell the same."""

import json
import sys

import hub_models
import pytest
import torch
from exports import ROWS, ids_of, in_a_fresh_process, logits_of, student
from tokenizers import Tokenizer

from distillkit.arithmetic import Shape
from distillkit.benchmark import bytes_on_disk
from distillkit.chat import encode_prompt, train_tokenizer
from distillkit.decoding import generate_replies
from distillkit.dialogues import front_desk
from distillkit.errors import UserError
from distillkit.export import GGUF_KINDS, check_export, export_gguf, gguf_types, read_gguf
from distillkit.export.gguf_files import halves, neighbours
from distillkit.export.gguf_tokenizer import UNNAMED, spelling
from distillkit.model_files import load_model
from distillkit.models import build_shape

gguf = pytest.importorskip("gguf", reason="pip install 'gguf>=0.17' to test the export to GGUF")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def original():
    return student()


@pytest.fixture(scope="module")
def files(original, tmp_path_factory):
    """The student's file, by kind."""
    place = tmp_path_factory.mktemp("gguf")
    return {kind: export_gguf(*original, place / f"{kind}.gguf", kind) for kind in GGUF_KINDS}


def test_a_file_of_plain_numbers_gives_the_model_back(original, files):
    model, tokenizer = original
    again = read_gguf(files["f32"])
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
    assert check_export(model, again, tokenizer, ROWS, bound=0.0).require().tokens > 100


@pytest.mark.parametrize(
    ("kind", "bound", "bits"), [("f16", 0.05, 16), ("q8_0", 1.5, 8.5), ("q4_0", 20, 4.5)]
)
def test_fewer_bits_say_nearly_the_same(original, files, kind, bound, bits):
    model, tokenizer = original
    found = check_export(model, read_gguf(files[kind]), tokenizer, ROWS, bound=bound)
    assert 0 < found.largest_difference < bound
    assert found.same_text >= len(ROWS) - (kind == "q4_0")
    saved = files["f32"].stat().st_size - files[kind].stat().st_size
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert saved == pytest.approx(matrices * (32 - bits) / 8, rel=0.01)
    kept = {name: each for name, each in gguf_types(files[kind]).items() if "norm" not in name}
    assert set(kept.values()) == {kind.upper()}
    assert bytes_on_disk(files[kind]) == files[kind].stat().st_size


def test_the_table_may_keep_more_bits(original, tmp_path):
    file = export_gguf(*original, tmp_path / "mixed.gguf", "q4_0", table_kind="q8_0")
    types = gguf_types(file)
    assert types["token_embd.weight"] == "Q8_0" and types["blk.1.ffn_up.weight"] == "Q4_0"
    assert "output.weight" not in types  # tied: stored once


OTHERS = {
    "one key for two queries": Shape(64, 24, 2, 4, 2, 40, tied=True),
    "Qwen2.5's biases, an own head": Shape(64, 24, 2, 4, 2, 40, qkv_bias=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_shapes_are_carried(original, tmp_path, name):
    model = build_shape(OTHERS[name]).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            parameter.data.normal_()
    tokenizer = train_tokenizer(front_desk(2), vocab_size=104)
    model.resize_token_embeddings(112)  # wider than the tokenizer
    again = read_gguf(export_gguf(model, tokenizer, tmp_path / "plain.gguf", "f32"))
    ids = ids_of(model, 3, 17)
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))
    rounded = export_gguf(model, tokenizer, tmp_path / "rounded.gguf", "q8_0")
    types = gguf_types(rounded)  # 24 and 40 are no multiples of 32
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_down.weight"] == "F16"
    torch.testing.assert_close(
        logits_of(read_gguf(rounded), ids), logits_of(model, ids), atol=0.05, rtol=0
    )


def test_rows_that_rotate_together_are_neighbours():
    rows = torch.arange(12).numpy()  # two heads of six
    assert neighbours(rows, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert halves(neighbours(rows, 2), 2).tolist() == rows.tolist()


# The tokenizer -----------------------------------------------------------------------------------


def test_the_vocabulary_is_in_the_file(original, files):
    tokenizer = original[1]
    fields = gguf.GGUFReader(str(files["f32"])).fields
    said = {name: field.contents() for name, field in fields.items() if "tokenizer" in name}
    assert said["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert said["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert said["tokenizer.ggml.model"] == "gpt2" and said["tokenizer.ggml.pre"] == "gpt-2"
    control = [at for at, kind in enumerate(said["tokenizer.ggml.token_type"]) if kind == 3]
    assert control == sorted(tokenizer.added_tokens_decoder)


def test_the_chat_template_is_plain_and_says_the_same(original, files):
    """llama.cpp and its Python package know no tag {% generation %}."""
    import jinja2

    fields = gguf.GGUFReader(str(files["f32"])).fields
    template = fields["tokenizer.chat_template"].contents()
    plain = jinja2.Environment().from_string(template)
    for row in ROWS:
        wanted = original[1].apply_chat_template(row["messages"], tokenize=False)
        assert plain.render(messages=row["messages"]) == wanted


def test_llama_cpp_spells_as_the_course_does(original):
    """The words of GPT-2's pattern with our merges are the tokens of ours, digits included."""
    tokenizer = original[1]
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    assert spelling(tokenizer) == "gpt-2"
    settings["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = GPT2
    theirs = Tokenizer.from_str(json.dumps(settings))
    texts = [each["content"] for row in front_desk(40, seed=5) for each in row["messages"]]
    for text in [*(text for text in texts if text), " 1234 at 19:30,  ab12\n\n 007 "]:
        assert theirs.encode(text).ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_spelling_without_a_name_is_said_so(original, tmp_path, caplog):
    tokenizer = train_tokenizer(front_desk(2), vocab_size=110)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    core["model"]["merges"].append(["1", "2"])
    core["model"]["vocab"]["12"] = len(tokenizer)
    tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(core)).model
    assert spelling(tokenizer) == UNNAMED
    model = build_shape(Shape(len(tokenizer) + 1, 32, 1, 2, 2, 32, tied=True))
    export_gguf(model, tokenizer, tmp_path / "odd.gguf")
    assert "feed it ids" in caplog.text


# Files -------------------------------------------------------------------------------------------


def test_a_fresh_process_says_the_same(original, files):
    tokenizer = original[1]
    prompts = [encode_prompt(tokenizer, row["messages"][:1]) for row in ROWS]
    (there,) = in_a_fresh_process(prompts, files["q4_0"])
    assert there == generate_replies(read_gguf(files["q4_0"]), tokenizer, prompts)


def test_a_damaged_file_is_refused(files, tmp_path):
    content = files["q8_0"].read_bytes()
    manifest = files["q8_0"].with_name("q8_0.gguf.manifest.json").read_text()
    file, beside = tmp_path / "q8_0.gguf", tmp_path / "q8_0.gguf.manifest.json"
    beside.write_text(manifest)
    with pytest.raises(UserError, match="no such folder or file"):
        read_gguf(file)
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for damaged, said in ((content[:-100], "is cut off"), (flipped, "was altered")):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=said):
            read_gguf(file)
    file.write_bytes(content)
    assert read_gguf(file).config.num_hidden_layers == 2
    beside.unlink()
    with pytest.raises(UserError, match=r"has no q8_0\.gguf\.manifest\.json"):
        read_gguf(file)


def test_what_is_not_covered_is_refused(original, tmp_path):
    tokenizer = original[1]
    with pytest.raises(UserError, match="kind is 'q2_k': expected one of f32"):
        export_gguf(*original, tmp_path / "out.gguf", "q2_k")
    with pytest.raises(UserError, match="is a folder"):
        export_gguf(*original, tmp_path)
    model, own = load_model(hub_models.gpt2(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="GPT2LMHeadModel is not covered"):
        export_gguf(model, own, tmp_path / "out.gguf")
    scaled = build_shape(Shape(1024, 24, 1, 2, 2, 40))
    scaled.config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UserError, match="'linear' is not carried by the GGUF export"):
        export_gguf(scaled, tokenizer, tmp_path / "out.gguf")
    with pytest.raises(UserError, match=r"1,024 tokens and the model 64 rows"):
        export_gguf(build_shape(Shape(64, 24, 1, 2, 2, 40)), tokenizer, tmp_path / "out.gguf")
    _, words = load_model(hub_models.bert(tmp_path / "bert"))
    with pytest.raises(UserError, match="is a WordPiece"):
        export_gguf(build_shape(Shape(500, 24, 1, 2, 2, 40)), words, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_missing_package_is_named(original, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="gguf is not installed: pip install 'gguf>="):
        read_gguf(files["f32"])
