"""Conversations from files and data sets: what is kept, what is refused, and how that is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.dialogues.loading import Dialogues, load_dialogues
from distillkit.dialogues.rows import check_row
from distillkit.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "Good day!"}
GOOD = {"id": "a", "messages": [USER, ASSISTANT]}


def _jsonl(path: Path, *lines: bytes | str | dict) -> Path:
    def raw(line) -> bytes:
        line = json.dumps(line) if isinstance(line, dict | list) else line
        return line if isinstance(line, bytes) else line.encode()

    path.write_bytes(b"\n".join(map(raw, lines)))
    return path


BAD_LINES = {
    "unknown role 'bot'": {"messages": [USER, {"role": "bot", "content": "x"}]},
    "no user turn": {"messages": [ASSISTANT]},
    "no assistant turn": {"messages": [USER]},
    "empty assistant content": {"messages": [USER, {"role": "assistant", "content": " \n"}]},
    "empty user content": {"messages": [{"role": "user", "content": ""}, ASSISTANT]},
    "content is a list": {"messages": [USER, {"role": "assistant", "content": ["x"]}]},
    "content is a number": {"messages": [USER, {"role": "assistant", "content": 3}]},
    "assistant without content": {"messages": [USER, {"role": "assistant", "content": None}]},
    "no role": {"messages": [USER, {"content": "x"}]},
    "unknown role ['user']": {"messages": [USER, {"role": ["user"], "content": "x"}]},
    "found a string": {"messages": [USER, "Good day!"]},
    "'messages' is a string": {"messages": "hello"},
    "'messages' is an object": {"messages": {"role": "user"}},
    "no 'messages' (found text)": {"text": "hello"},
    "no 'messages' (found messages)": {"messages": None},
    "expected an object with 'messages', found a number": "17",
    "expected an object with 'messages', found null": "null",
    "not UTF-8 (byte 0xff at position 3)": b'{"\xff": 1}',
    "not JSON (Expecting": '{"messages": ',
    "not JSON that can be read": "[" * 100_000,
    "lone surrogate": '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "user with tool_calls": {"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ASSISTANT]},
    "tool_calls is a number": {"messages": [USER, {"role": "assistant", "tool_calls": 3}]},
    "without a function's name": {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
    "arguments are a number": {
        "messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": 3}]}]
    },
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_line_is_refused_with_file_line_and_reason(tmp_path: Path, reason: str) -> None:
    found = load_dialogues(_jsonl(tmp_path / "x.jsonl", GOOD, BAD_LINES[reason], GOOD))
    assert len(found) == 2
    (refused,) = found.refused
    assert (refused.where, refused.line) == ("x.jsonl", 2)
    assert reason in refused.reason
    assert found.summary().startswith("kept 2 of 3 dialogues from x.jsonl; refused 1: line 2: ")
    assert "\n" not in found.summary()


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r", b"", b"  \r", GOOD, ""]
    found = load_dialogues(_jsonl(tmp_path / "x.jsonl", *lines))
    assert found.summary() == "kept 2 of 2 dialogues from x.jsonl"


def test_refusals_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    found = load_dialogues(_jsonl(tmp_path / "x.jsonl", GOOD, *["{"] * 7))
    assert found.summary().count("line ") == 3 + 3  # JSON's own message says "line 1 column 2"
    assert found.summary().endswith("and 4 more")


def test_a_limit_stops_reading_and_the_summary_says_so(tmp_path: Path) -> None:
    found = load_dialogues(_jsonl(tmp_path / "x.jsonl", "{", GOOD, GOOD, GOOD, "{"), limit=2)
    assert len(found) == 2
    assert found.summary().startswith("kept 2 of the first 3 dialogues from x.jsonl; refused 1")


def test_rows_keep_their_other_fields_and_get_an_id(tmp_path: Path) -> None:
    rows = [{"messages": GOOD["messages"], "source": "star"}, {**GOOD, "id": 7}]
    found = load_dialogues(_jsonl(tmp_path / "x.jsonl", *rows))
    assert [row["id"] for row in found] == ["x.jsonl-1", "7"]
    assert found[0]["source"] == "star"
    assert found[0:1] == [found[0]]
    assert isinstance(found, Dialogues)


@pytest.mark.parametrize(
    "content",
    [[GOOD, GOOD], [GOOD["messages"], GOOD["messages"]], GOOD, GOOD["messages"]],
    ids=["rows", "lists of messages", "one row", "one list of messages"],
)
def test_json_files_hold_rows_or_messages(tmp_path: Path, content) -> None:
    path = tmp_path / "x.json"
    path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert all(row["messages"] == GOOD["messages"] for row in load_dialogues(path))


def test_json_rows_are_counted_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([GOOD, {"messages": []}, GOOD]))
    assert "refused 1: row 2: no user turn" in load_dialogues(path).summary()


@pytest.mark.parametrize("content", [b"17", b"{", b"\xff\xfe{", b'"text"', b""])
def test_a_json_file_that_is_no_list_is_refused_in_a_sentence(tmp_path: Path, content) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json (holds|cannot be read)"):
        load_dialogues(path)


def test_sharegpt_names_are_mapped(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("human", "hello"), ("gpt", "Good day!")]
    row = {"conversations": [{"from": name, "value": text} for name, text in turns]}
    (found,) = load_dialogues(_jsonl(tmp_path / "x.jsonl", row))
    assert [message["role"] for message in found["messages"]] == ["system", "user", "assistant"]
    assert found["messages"][1:] == GOOD["messages"]
    assert "conversations" not in found


CALL = {"type": "function", "function": {"name": "search", "arguments": {"area": "north"}}}


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"name": "search", "arguments": {"area": "north", "domain": None}},
        {"type": None, "function": {"name": "search", "arguments": '{"area": "north"}'}},
    ],
)
def test_tool_calls_come_out_in_one_form_without_nulls(tmp_path: Path, call) -> None:
    message = {"role": "assistant", "content": None, "name": None, "tool_calls": [call]}
    rows = [{"messages": [{**USER, "tool_calls": None}, message]}]
    (found,) = load_dialogues(_jsonl(tmp_path / "x.jsonl", *rows))
    assert found["messages"] == [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]


def test_parquet_with_calls_loses_the_nulls_that_the_table_added(tmp_path: Path) -> None:
    import datasets

    other = {"function": {"name": "book", "arguments": {"code": "K7", "area": None}}}
    rows = [
        {"id": "a", "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        {"id": "b", "messages": [USER, {"role": "assistant", "tool_calls": [other]}, ASSISTANT]},
        {"id": "c", "messages": [USER]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    found = load_dialogues(tmp_path / "x.parquet")
    assert found.summary() == (
        "kept 2 of 3 dialogues from x.parquet; refused 1: row 3: no assistant turn"
    )
    assert found[0]["messages"][1]["tool_calls"] == [CALL]
    assert found[0]["messages"][0] == USER
    assert found[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"code": "K7"}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all" * 100])
def test_a_broken_parquet_file_is_refused_in_a_sentence(tmp_path: Path, content) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.parquet cannot be read as Parquet"):
        load_dialogues(tmp_path / "x.parquet")


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"messages": pyarrow.array([], "str")}), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match=r"x\.parquet gives no dialogue to learn from: it is empty"):
        load_dialogues(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("missing.txt", "missing.txt: no such file"),
        ("./missing", "no such file"),
        (".", "is a folder"),
        (Path("missing"), "missing: no such file"),
        ("not a name", "is no file and no hub name"),
        ("", "is a folder|no hub name"),
    ],
)
def test_a_source_that_is_not_there_is_named(source, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_dialogues(source)


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("role,content")
    with pytest.raises(UserError, match=r"'\.csv'; expected \.jsonl, \.json or \.parquet"):
        load_dialogues(tmp_path / "x.csv")


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file_is_an_error(tmp_path: Path, lines) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl gives no dialogue to learn from: it is empty"):
        load_dialogues(_jsonl(tmp_path / "x.jsonl", *lines))


def test_a_file_of_bad_rows_alone_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refused 2: line 1: .*; line 2: no user turn"):
        load_dialogues(_jsonl(tmp_path / "x.jsonl", "{", {"messages": []}))


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="limit is 0"):
        load_dialogues(limit=0)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*args, **options):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        load_dialogues("someone/something")


def test_a_hub_data_set_is_read_by_name_configuration_and_split(monkeypatch) -> None:
    import datasets
    import huggingface_hub

    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list([GOOD, GOOD])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_dialogues("someone/something:small", split="test", limit=1)
    assert asked == [(("someone/something", "small"), {"split": "test"})]
    assert found.summary() == "kept 1 of the first 1 dialogues from someone/something:small (test)"


def test_a_split_that_the_hub_lacks_is_one_sentence(monkeypatch) -> None:
    import datasets
    import huggingface_hub

    def load_dataset(*args, **options):
        raise ValueError("Unknown split \"tset\". Should be one of ['train'].\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UserError, match='gives no data set someone/something: Unknown split "tset"'
    ):
        load_dialogues("someone/something", split="tset")


def test_the_front_desk_is_a_source_with_splits_and_seeds() -> None:
    one, same = load_dialogues(limit=3, seed=5), load_dialogues(limit=3, seed=5)
    assert list(one) == list(same)
    assert list(one) != list(load_dialogues(limit=3, seed=6))
    validation = load_dialogues(split="validation", limit=3)
    assert list(validation) == list(load_dialogues(split="development", limit=3))
    assert one.summary() == "kept 3 of 3 dialogues from front-desk (train, seed 5)"
    with pytest.raises(UserError, match="no split 'tset'"):
        load_dialogues(split="tset")


def test_every_row_of_the_front_desk_passes_the_checks() -> None:
    for row in load_dialogues(limit=50):
        checked, reason = check_row(row)
        assert not reason
        assert checked is not None
        assert checked["messages"] == row["messages"]


KEYS = (
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "tool_calls",
    "function",
    "name",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner | st.sampled_from(["user", "assistant", "tool", "human", "gpt", "hello"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_whatever_json_a_row_is_it_is_kept_or_refused_with_a_reason(value) -> None:
    row, reason = check_row(value)
    assert (row is None) == bool(reason)
    if row is not None:
        assert {message["role"] for message in row["messages"]} >= {"user", "assistant"}
        again, _ = check_row(row)
        assert str(again) == str(row)  # by text: NaN differs from itself


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=5))
def test_whatever_bytes_a_file_holds_the_good_row_is_found(tmp_path_factory, lines) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    found = load_dialogues(_jsonl(path, b"{", *lines, GOOD))
    assert len(found) == 1
    assert found.refused[0].line == 1


def test_loading_imports_no_torch() -> None:
    code = (
        "import sys; from distillkit.dialogues.loading import load_dialogues; "
        "load_dialogues(limit=1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dialogues_en.train.jsonl", 4_000),
        ("dialogues_en.validation.jsonl", 400),
        ("dialogues_en.test.jsonl", 400),
        ("dialogues_zh.train.jsonl", 1_500),
        ("dialogues_zh.test.jsonl", 200),
    ],
)
def test_the_real_conversations_load_whole(name: str, count: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"the real conversations are not here: expected {SHARED / name}")
    found = load_dialogues(SHARED / name)
    assert found.summary() == f"kept {count:,} of {count:,} dialogues from {name}"
