"""Judges that are models: a classifier, a chat model with a rubric, and one behind an endpoint."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers import tiny_llama, tiny_tokenizer
from transformers import LlamaForSequenceClassification

from neurontune_peft.judges import ClassifierJudge, EndpointJudge, RubricJudge, format_judge, judge_of
from neurontune_peft.judges.rubric import check_rubric, parse_verdict, rubric_message


def classifier(*names: str) -> LlamaForSequenceClassification:
    config = tiny_llama().config
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config).eval()


def test_a_classifiers_labels_are_read_out_of_their_names() -> None:
    judge = ClassifierJudge(classifier("NORMAL", "REJECTION"), tiny_tokenizer(), name="small")
    verdict = judge("Do it.", "No.")
    assert verdict.label in ("compliance", "refusal")
    assert 0.5 <= verdict.confidence <= 1.0
    assert judge.name == "small"


def test_a_classifier_says_what_its_logits_say() -> None:
    model = classifier("yes", "no", "neither")
    labels = {"yes": "compliance", "no": "refusal", "neither": "refusal"}
    judge = ClassifierJudge(model, tiny_tokenizer(), labels=labels)
    ids = tiny_tokenizer()("No.", return_tensors="pt")
    shares = model(**ids).logits[0].detach().softmax(-1)
    verdict = judge("Do it.", "No.")
    expected = "compliance" if int(shares.argmax()) == 0 else "refusal"
    share = shares[0] if expected == "compliance" else shares[1] + shares[2]
    assert verdict.label == expected
    assert verdict.confidence == pytest.approx(float(share), rel=1e-5)


def test_a_classifier_of_pairs_reads_the_request_too() -> None:
    judge = ClassifierJudge(classifier("ACCEPT", "REFUSAL"), tiny_tokenizer(), pair=True)
    assert judge("Do it.", "No.").confidence != judge("Something else that is asked for.", "No.").confidence
    assert judge("Do it.", " ").label == "incoherent"


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("LABEL_0", "LABEL_1"), None),
        (("REFUSAL", "REJECTION"), None),
        (("a", "b"), {"a": "refusal"}),
        (("a", "b"), {"a": "refusal", "b": "perhaps"}),
        (("a", "b"), {"a": "refusal", "b": "compliance", "c": "partial"}),
    ],
)
def test_a_classifier_whose_labels_mean_nothing_is_refused(names: tuple[str, ...], labels: dict | None) -> None:
    with pytest.raises(ValueError, match=r"got .*; expected .*; "):
        ClassifierJudge(classifier(*names), tiny_tokenizer(), labels=labels)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"verdict": "refusal", "confidence": 0.9, "reason": "declines"}', "refusal"),
        ('Let me see.\n```json\n{"verdict": "Partial"}\n```', "partial"),
        ('{"verdict": "refusal"} no, rather {"verdict": "compliance"}', "compliance"),
        ("<think>It could be a refusal or compliance.</think> Verdict: compliance.", "compliance"),
        ("**Verdict:** incoherent", "incoherent"),
        ("This is a refusal.", "refusal"),
        ("It is a refusal or compliance.", "unscored"),
        ("I cannot judge this.", "unscored"),
        ('{"verdict": "bad"}', "unscored"),
        ('{"verdict": ', "unscored"),
        ("", "unscored"),
        ("<think> refusal refusal", "unscored"),
    ],
)
def test_a_verdict_is_read_out_of_what_a_model_says(text: str, label: str) -> None:
    assert parse_verdict(text).label == label


@pytest.mark.parametrize(("stated", "used"), [("0.8", 0.8), ("7", 0.5), ('"high"', 0.5), ("true", 0.5), ("null", 0.5)])
def test_a_confidence_that_is_none_is_a_half(stated: str, used: float) -> None:
    assert parse_verdict(f'{{"verdict": "refusal", "confidence": {stated}}}').confidence == used


def test_a_chat_model_judges_in_its_own_chat_template() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    seen = []
    model.generate = lambda input_ids, **options: (  # type: ignore[method-assign]
        seen.append(tokenizer.decode(input_ids[0]))
        or torch.cat([input_ids, torch.tensor([tokenizer("Verdict: refusal")["input_ids"]])], dim=1)
    )
    verdict = RubricJudge(model, tokenizer)("Do {it}.", "No {never}.")
    assert verdict.label == "refusal"
    assert seen[0].startswith("<bos><user>")
    assert seen[0].endswith("<eos><assistant>")
    assert "Do {it}." in seen[0]
    assert "No {never}." in seen[0]


def test_a_model_that_says_nothing_sensible_leaves_answers_unscored() -> None:
    assert (
        RubricJudge(tiny_llama(), tiny_tokenizer(), rubric="{prompt}{answer}", max_new_tokens=3)("a", "b").label
        == "unscored"
    )


def test_a_judging_model_needs_a_chat_template_and_a_rubric_its_places() -> None:
    with pytest.raises(ValueError, match="got a judging model without a chat template; expected"):
        RubricJudge(tiny_llama(), tiny_tokenizer(chat_template=None))
    for rubric in ("{prompt}", "{prompt} {answer} {other}", "{prompt} {answer} {"):
        with pytest.raises(ValueError, match=r"got a rubric .*; expected .*; "):
            check_rubric(rubric)
    assert len(rubric_message("x" * 99999, "y")) < 10000


class Server:
    """An endpoint on this machine that gives prepared replies: texts, or numbers of HTTP errors."""

    def __init__(self) -> None:
        self.replies: list[str | int] = []
        self.requests: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                reply = outer.replies.pop(0) if outer.replies else 500
                if isinstance(reply, int):
                    self.send_response(reply)
                    self.send_header("Content-Length", "0")
                    self.send_header("retry-after-ms", "1")
                    self.end_headers()
                    return
                message = {"role": "assistant", "content": reply}
                body = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                }
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("openai", reason="the openai extra is not installed")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_an_endpoint_is_asked_with_the_rubric_and_its_reply_is_read(server: Server) -> None:
    server.replies = ['{"verdict": "partial", "confidence": 0.7, "reason": "some of it"}']
    verdict = EndpointJudge("m", server.url)("Do it.", "A bit.")
    assert (verdict.label, verdict.confidence, verdict.reason) == ("partial", 0.7, "some of it")
    (request,) = server.requests
    assert request["model"] == "m"
    assert request["temperature"] == 0
    assert "A bit." in request["messages"][0]["content"]


def test_an_endpoint_that_fails_for_a_while_is_asked_again(server: Server) -> None:
    server.replies = [503, 429, '{"verdict": "refusal"}']
    assert EndpointJudge("m", server.url, retries=3)("Do it.", "No.").label == "refusal"
    assert len(server.requests) == 3


def test_after_the_retries_the_answer_is_unscored_and_the_next_is_asked(server: Server) -> None:
    server.replies = [503, 503, '{"verdict": "refusal"}', "hm"]
    judge = EndpointJudge("m", server.url, retries=1)
    first, second, third = judge("a", "b"), judge("a", "b"), judge("a", "b")
    assert (first.label, second.label, third.label) == ("unscored", "refusal", "unscored")
    assert "failed" in first.reason
    assert "cannot parse 'hm'" in third.reason


def test_an_endpoint_that_nobody_answers_at_is_left_after_three_requests(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    judge = EndpointJudge("m", server.url, retries=0, timeout=2)
    reasons = [judge("a", "b").reason for _ in range(5)]
    assert all("was not reached (" in reason for reason in reasons[:3])
    assert all("not asked" in reason for reason in reasons[3:])


def test_words_name_judges() -> None:
    pytest.importorskip("openai", reason="the openai extra is not installed")
    assert judge_of("format") is format_judge
    assert judge_of("openai:a@b@http://127.0.0.1:1/v1").name == "endpoint a@b"
    assert judge_of("neurontune_peft.judges:opening_judge").name == "opening phrases"


@pytest.mark.parametrize(
    "word",
    [
        "",
        "best",
        "rubric:",
        "rubric:no/such/model/here",
        "classifier:no/such/model/here",
        "openai:model",
        "openai:@http://x",
        "no_such_module:attr",
        "neurontune_peft.judges:LABELS",
        "neurontune_peft.judges:nothing",
    ],
)
def test_words_that_name_no_judge_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"got judge .*; expected .*; "):
        judge_of(word)
