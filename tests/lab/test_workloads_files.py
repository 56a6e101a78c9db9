"""Finding data files, reading traces in their formats, and what is said of broken ones."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasten.engine.request import SLO
from hasten.lab.workloads import TimedRequest, Workload, WorkloadError, data, jsonl, load, names, sharegpt, text2sql
from hasten.lab.workloads.burstgpt import load as load_burstgpt

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
HAVE_DATA = data.data_folder() is not None
needs_data = pytest.mark.skipif(not HAVE_DATA, reason="HASTEN_DATA is not set")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hasten" / "data"


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows(workload: Workload) -> list[tuple[float, int, int]]:
    return [(round(r.arrival_s, 6), r.prompt_tokens, r.output_tokens) for r in workload]


# -- formats ---------------------------------------------------------------------------------------------------------


def test_azure_rows_are_sorted_and_start_at_zero(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 18:15:50.9951690,396,109\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
    text += "\r\n2023-11-16 18:15:46.6805900,7,1"
    workload = load(written(tmp_path, "day.csv", text))
    assert rows(workload) == [(0.0, 374, 44), (0.0, 7, 1), (4.314579, 396, 109)]
    assert workload.name == "day" and "day.csv" in workload.source


def test_azure_times_may_have_a_zone_and_the_file_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.009930+00:00,2,6\n"
    assert rows(load(written(tmp_path, "a.csv", text))) == [(0.0, 2162, 5), (1.0, 2, 6)]


def test_mooncake_hashes_become_blocks(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 27000, "input_length": 600, "output_length": 4, "hash_ids": [0, 9]},
        {"timestamp": 3000, "input_length": 513, "output_length": 3, "hash_ids": [0, 4]},
    ]
    workload = load(written(tmp_path, "m.jsonl", "\n".join(map(json.dumps, lines))))
    assert rows(workload) == [(0.0, 513, 3), (24.0, 600, 4)]
    assert [r.blocks for r in workload] == [(0, 4), (0, 9)] and workload.block_tokens == 512


BURST_ROWS = (
    BURSTGPT
    + "5,12,1.5,ChatGPT,472,18,490,Conversation log\n"
    + "45,,2.0,GPT-4,30,0,30,API log\n"
    + "118.5,12,0.1,ChatGPT,1087,230,1317,Conversation log\n"
)


def test_burstgpt_drops_or_keeps_what_failed(tmp_path: Path) -> None:
    path = written(tmp_path, "b.csv", BURST_ROWS)
    dropped, kept = load(path), load(f"{path}:failures=keep")
    assert rows(dropped) == [(0.0, 472, 18), (113.5, 1087, 230)]
    assert [(r.application, r.workflow) for r in dropped] == [("ChatGPT/conversation", "12")] * 2
    assert "1 unanswered ones dropped" in dropped.source
    assert [(r.failed, r.output_tokens) for r in kept] == [(False, 18), (True, 1), (False, 230)]
    assert kept.requests[1].application == "GPT-4/api"


def test_burstgpt_of_the_first_release_has_no_sessions(tmp_path: Path) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    assert load(written(tmp_path, "b.csv", text)).requests[0].workflow == ""


STEPS = ["Information Retriever", "Information Retriever", "generate_candidate_llama-agent", "generate_candidate_llama-agent"]
STEPS += ["revise", "evaluate", "evaluate"]


def workflows(tmp_path: Path) -> Path:
    steps = [{"step": step, "input_length": 100 + i, "output_length": 1 + i} for i, step in enumerate(STEPS)]
    return Path(written(tmp_path, "t.json", json.dumps([{text2sql.KEY: steps}, {text2sql.KEY: steps[:1]}])))


def test_text2sql_stages_wait_for_all_calls_before(tmp_path: Path) -> None:
    workload = load(f"{workflows(tmp_path)}:rate=2,seed=1")
    first = [r for r in workload if r.workflow == "0"]
    assert [r.stage for r in first] == STEPS
    assert [r.parents for r in first] == [
        (),
        ("0.0",),  # retrievals follow each other
        ("0.1",),
        ("0.1",),  # candidates run together
        ("0.2", "0.3"),
        ("0.4",),
        ("0.4",),
    ]
    assert first[0].arrival_s == 0.0 and workload.requests[-1].arrival_s > 0
    together = text2sql.load(workflows(tmp_path), parallel=None)
    assert [r.parents for r in together][:3] == [(), (), ("0.0", "0.1")]


def test_text2sql_arrivals_follow_rate_and_seed(tmp_path: Path) -> None:
    last = [load(f"{workflows(tmp_path)}:rate={rate},seed={seed}").duration_s for rate, seed in ((1, 1), (2, 1), (1, 2))]
    assert last[0] == pytest.approx(2 * last[1]) and last[0] != last[2]


def chats(tmp_path: Path) -> Path:
    said = [("human", "h" * 40), ("gpt", "g" * 400), ("human", "i" * 8), ("gpt", "j" * 4), ("human", "?")]
    one = {"id": "x", "conversations": [{"from": role, "value": text} for role, text in said]}
    said = [("system", "s" * 4), ("user", "u"), ("assistant", "a" * 5)]
    other = {"messages": [{"role": role, "content": text} for role, text in said]}
    return Path(written(tmp_path, "s.json", json.dumps([one, other, {"conversations": []}])))


def test_sharegpt_turns_carry_their_history(tmp_path: Path) -> None:
    workload = load(f"{chats(tmp_path)}:think_s=10,rate=0.5")
    first, second, third = workload.requests
    assert (first.prompt_tokens, first.output_tokens) == (10 + 2, 100)
    assert (second.prompt_tokens, second.output_tokens) == (10 + 1 + 100 + 1 + 2 + 2, 1)
    assert second.parents == (first.id,) and second.delay_s > 0 and not third.parents
    assert second.blocks[: len(first.blocks)] == first.blocks and len(second.blocks) == -(-116 // 16)
    assert not set(third.blocks) & set(second.blocks)
    assert third.prompt_tokens == 1 + 1 + 1 + 1 + 1


def test_sharegpt_with_text_and_tokenizer(tmp_path: Path) -> None:
    workload = sharegpt.load(chats(tmp_path), text=True, encode=list, conversations=1)
    first, second = workload.requests
    assert first.text == "user: " + "h" * 40 + "\nassistant: " and not first.blocks
    assert second.text is not None and second.text.startswith(first.text + "g" * 400)
    assert first.output_tokens == 400


def test_own_format_survives_a_round_trip(tmp_path: Path) -> None:
    requests = [
        TimedRequest(id="a", arrival_s=0.0, prompt_tokens=900, output_tokens=2, blocks=(3, 4), slo_class="chat", tenant="t"),
        TimedRequest(id="b", arrival_s=0.0, prompt_tokens=5, output_tokens=2, parents=("a",), delay_s=1.5, stage="s"),
        TimedRequest(id="c", arrival_s=2.25, prompt_tokens=1, output_tokens=1, text="hé", adapter="x", priority=-3),
        TimedRequest(id="d", arrival_s=2.25, prompt_tokens=1, output_tokens=1, workflow="w", failed=True),
    ]
    workload = Workload(name="w", requests=requests, block_tokens=500, slos={"chat": SLO(ttft_s=0.5)}, source="made up")
    jsonl.write(workload, tmp_path / "w.jsonl")
    assert load(str(tmp_path / "w.jsonl")) == workload


def test_own_format_needs_little(tmp_path: Path) -> None:
    lines = '{"arrival_s": 3, "text": "12345678", "output_tokens": 6}\n'
    lines += '{"output_tokens": 1, "arrival_s": 1, "prompt_tokens": 7, "text": null}\n'
    workload = load(written(tmp_path, "o.jsonl", lines))
    assert [(r.id, r.arrival_s, r.prompt_tokens) for r in workload] == [("1", 1.0, 7), ("0", 3.0, 2)]


# -- broken files ------------------------------------------------------------------------------------------------------

MOONCAKE = {"timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [0, 9]}
OWN = {"arrival_s": 0.0, "prompt_tokens": 600, "output_tokens": 4}
STEP = {"step": "revise", "input_length": 10, "output_length": 1}


def lines_of(good: dict[str, object], **changed: object) -> str:
    bad = {name: value for name, value in (good | changed).items() if value != "gone"}
    return f"{json.dumps(good)}\n{json.dumps(bad)}\n"


BROKEN = {
    "empty file": ("", "is empty"),
    "no rows": (AZURE, "no rows"),
    "column missing": ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n", "'GeneratedTokens' is missing"),
    "azure negative": (AZURE + "2023-11-16 18:15:46,5,5\n2023-11-16 18:15:46,-5,5\n", "line 3: ContextTokens"),
    "azure NaN": (AZURE + "2023-11-16 18:15:46,nan,5\n", "line 2: ContextTokens"),
    "azure infinite": (AZURE + "2023-11-16 18:15:46,inf,5\n", "line 2: ContextTokens"),
    "azure fraction": (AZURE + "2023-11-16 18:15:46,1.5,5\n", "line 2: ContextTokens"),
    "azure zero": (AZURE + "2023-11-16 18:15:46,5,0\n", "line 2: GeneratedTokens"),
    "azure word": (AZURE + "2023-11-16 18:15:46,many,5\n", "line 2: ContextTokens must be a number, got 'many'"),
    "azure time": (AZURE + "2023-11-16 18:15:46,1,5\nyesterday,1,5\n", "line 3: TIMESTAMP"),
    "azure no time": (AZURE + "NaT,1,5\n", "line 2: TIMESTAMP"),
    "azure blank time": (AZURE + ",1,5\n", "line 2: TIMESTAMP"),
    "short row": (AZURE + "2023-11-16 18:15:46,1\n", "line 2: 2 fields"),
    "open quote": (AZURE + '"2023-11-16 18:15:46,1,5\n', "line 2"),
    "not text": (AZURE.encode() + b"\xff\xfe\xff,1,5\n", "line 2: not UTF-8"),
    "burstgpt negative time": (BURSTGPT + "-1,,1,ChatGPT,4,5,9,API log\n", "line 2: Timestamp"),
    "burstgpt NaN time": (BURSTGPT + "nan,,1,ChatGPT,4,5,9,API log\n", "line 2: Timestamp"),
    "burstgpt column": ("Timestamp,Model,Request tokens,Log Type\n1,ChatGPT,2,API log\n", "'Response tokens' is missing"),
    "burstgpt nothing answered": (BURSTGPT + "1,,1,ChatGPT,4,0,4,API log\n", "no request in it was answered"),
    "burstgpt empty prompt": (BURSTGPT + "1,,1,ChatGPT,0,4,4,API log\n", "line 2: Request tokens is 0"),
    "mooncake field": (lines_of(MOONCAKE, output_length="gone"), "line 2: the field 'output_length' is missing"),
    "mooncake negative time": (lines_of(MOONCAKE, timestamp=-1), "line 2: timestamp"),
    "mooncake word": (lines_of(MOONCAKE, input_length="x"), "line 2: input_length must be a whole number, got 'x'"),
    "mooncake yes": (lines_of(MOONCAKE, input_length=True), "line 2: input_length must be a whole number"),
    "mooncake huge": (lines_of(MOONCAKE, input_length=10**12), "line 2: input_length must be at most"),
    "mooncake blocks": (lines_of(MOONCAKE, hash_ids=[1, 2, 3]), "line 2: 3 blocks"),
    "mooncake hashes": (lines_of(MOONCAKE, hash_ids=["a"]), "line 2: the block numbers"),
    "mooncake huge hash": (lines_of(MOONCAKE, hash_ids=[2**64 - 1]), "line 2: the block numbers"),
    "mooncake cut off": (json.dumps(MOONCAKE) + '\n{"timestamp": 1, "inp', "line 2: not JSON"),
    "mooncake NaN": ('{"timestamp": NaN, "input_length": 1, "output_length": 1, "hash_ids": []}', "line 1: not JSON"),
    "json but no object": (json.dumps(MOONCAKE) + "\n[1]\n", "line 2: expected a JSON object"),
    "own field": (lines_of(OWN, promt_tokens=1), "line 2: promt_tokens: there is no such field; known: id, arrival_s"),
    "own nothing": (lines_of(OWN, prompt_tokens="gone"), "line 2: prompt_tokens is missing"),
    "own no output": (lines_of(OWN, output_tokens="gone"), "line 2: output_tokens is missing"),
    "own no arrival": (lines_of(OWN, arrival_s="gone"), "line 2: arrival_s is missing"),
    "own negative": (lines_of(OWN, arrival_s=-0.5), "line 2: arrival_s must be finite and not negative"),
    "own priority": (lines_of(OWN, priority="high"), "line 2: priority must be a whole number"),
    "own parents": (lines_of(OWN, parents="0"), "line 2: parents must be a list"),
    "own orphan": (lines_of(OWN, parents=["7"]), "its parent '7' does not come before it"),
    "own twin": (lines_of(OWN, id="0"), "another request has the same id"),
    "own class": (lines_of(OWN, slo_class="gold"), "SLO class 'gold' is not described"),
    "own header": ('{"workload": {"slos": {"a": {"ttft": 1}}}}\n' + json.dumps(OWN), "line 1: slos"),
    "own header alone": ('{"workload": {"name": "x"}}\n', "no requests"),
    "text2sql empty": (f'[{{"{text2sql.KEY}": []}}]', "workflow 0"),
    "text2sql step": (json.dumps([{text2sql.KEY: [STEP, STEP | {"input_length": -2}]}]), "workflow 0: step 1: input_length"),
    "text2sql name": (json.dumps([{text2sql.KEY: [STEP | {"step": 3}]}]), "workflow 0: step 0: step must be a name"),
    "sharegpt role": ('[{"conversations": [{"from": "cat", "value": "meow"}]}]', "conversation 0: message 0: its role"),
    "sharegpt text": ('[{"conversations": [{"from": "human", "value": 3}]}]', "conversation 0: message 0: its text"),
    "sharegpt silent": ('[{"conversations": [{"from": "human", "value": "?"}]}]', "no conversation in it has a turn"),
    "some other file": ("name,age\nx,3\n", "its format is not known"),
    "some other json": ('{"a": 1}', "its format is not known"),
    "some other list": ("[1, 2]", "its format is not known"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_told_by_file_line_and_field(tmp_path: Path, case: str) -> None:
    content, expected = BROKEN[case]
    with pytest.raises(WorkloadError, match="broken") as caught:
        load(written(tmp_path, "broken.dat", content))
    assert expected in str(caught.value)


@pytest.mark.slow
def test_a_million_rows_load(tmp_path: Path) -> None:
    row = "2023-11-16 18:15:46.6805900,374,44\n"
    path = written(tmp_path, "long.csv", AZURE + row * 1_000_000)
    began = time.monotonic()
    assert len(load(path)) == 1_000_000
    assert time.monotonic() - began < 60  # about 8 s on an idle machine


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: load_burstgpt(path, failures="maybe"), "failures must be drop or keep"),  # type: ignore[arg-type]
        (lambda path: text2sql.load(path, rate=0), "rate must be a positive"),
        (lambda path: sharegpt.load(path, think_s=-1), "think_s must be a positive"),
        (lambda path: sharegpt.load(path, conversations=0), "conversations must be at least 1"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(WorkloadError, match=expected):
        make(tmp_path / "never read")


# -- finding -----------------------------------------------------------------------------------------------------------


def test_a_file_at_hand_is_known_by_its_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setenv("HASTEN_DATA", str(tmp_path))
    own_cache.mkdir(parents=True)
    written(tmp_path, "mine.csv", AZURE + "2023-11-16 18:15:46,5,6\n")
    written(tmp_path, "notes.json", '{"no": "trace"}')
    written(own_cache, "cached.jsonl", json.dumps(OWN))
    assert {"mine", "cached", "azure-llm-2023-conv", "poisson"} <= set(names()) and "notes" not in names()
    assert rows(load("mine")) == [(0.0, 5, 6)] and len(load("cached")) == 1


def test_an_unknown_name_lists_what_is_known() -> None:
    with pytest.raises(WorkloadError, match=r"azure-llm-2023-con'; did you mean azure-llm-2023-conv.*known: .*poisson"):
        load("azure-llm-2023-con")
    with pytest.raises(WorkloadError, match="there is no such file"):
        load("nowhere/trace.jsonl")


def test_a_data_folder_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_DATA", "/no/such/folder")
    with pytest.raises(WorkloadError, match="HASTEN_DATA names '/no/such/folder'"):
        data.find("azure-llm-2023-conv.csv")


CONTENT = (AZURE + "2023-11-16 18:15:46,5,6\n").encode()


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
        elif self.path in ("/whole", "/short"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) + (5 if self.path == "/short" else 0)))
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def known(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str | None) -> None:
    monkeypatch.delenv("HASTEN_DATA", raising=False)
    monkeypatch.setattr(data, "FILES", {"far.csv": data.DataFile("far.csv", url, sha256, "far away")})


@pytest.mark.parametrize("path", ["/whole", "/moved"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_download_is_verified_and_kept(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, address: str, path: str, checked: bool
) -> None:
    known(monkeypatch, address + path, hashlib.sha256(CONTENT).hexdigest() if checked else None)
    assert rows(load("far")) == [(0.0, 5, 6)]
    assert [file.name for file in own_cache.iterdir()] == ["far.csv"]
    known(monkeypatch, address + "/gone", None)
    assert len(load("far")) == 1  # from the cache


@pytest.mark.parametrize(("path", "expected"), [("/whole", "SHA-256"), ("/short", "far.csv is not at hand"), ("/gone", "404")])
def test_a_bad_download_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, address: str, path: str, expected: str
) -> None:
    known(monkeypatch, address + path, "0" * 64)
    with pytest.raises(WorkloadError, match=expected) as caught:
        load("far")
    assert address + path in str(caught.value)
    assert not list(own_cache.iterdir())


def test_no_network_names_address_and_folder(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    known(monkeypatch, "http://127.0.0.1:9/far.csv", None)
    with pytest.raises(WorkloadError, match=r"http://127\.0\.0\.1:9/far\.csv .*HASTEN_DATA") as caught:
        load("far")
    assert str(own_cache) in str(caught.value)


# -- the real files ------------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", [name for name in data.FILES if HAVE_DATA and data.at_hand(name)])
def test_real_files_are_the_ones_meant(name: str) -> None:
    path = data.find(name)
    assert data.FILES[name].sha256 in (None, hashlib.sha256(path.read_bytes()).hexdigest())


@needs_data
def test_real_traces() -> None:
    azure, mooncake = load("azure-llm-2023-conv"), load("mooncake-conversation")
    assert (len(azure), azure.requests[0].prompt_tokens, azure.requests[-1].output_tokens) == (19_366, 374, 183)
    assert azure.duration_s == pytest.approx(3501.7219, abs=1e-3)
    assert (len(mooncake), mooncake.duration_s) == (12_031, 3536.999)
    assert mooncake.requests[1].blocks == (0, *range(14, 28))
    workflows = load("text2sql-workflow-trace1")
    assert (len(workflows), sum(not r.parents for r in workflows)) == (1732, 90)
