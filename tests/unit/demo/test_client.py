import shlex

import httpx
import pytest

from demo.client import Client, DemoError

URL = "http://127.0.0.1:8000"


def client_answering(response, *, api_key=None, seen=None):
    def answer(request):
        if seen is not None:
            seen.append(request)
        if isinstance(response, Exception):
            raise response
        return response

    return Client(URL, api_key=api_key, transport=httpx.MockTransport(answer))


class TestErrors:
    def test_a_problem_document_is_told_in_its_own_words(self):
        problem = {
            "detail": "the request is wrong",
            "errors": [{"pointer": "/method/pair", "message": "no such pair"}],
        }
        client = client_answering(httpx.Response(422, json=problem))

        with pytest.raises(DemoError, match=r"422: the request is wrong; /method/pair: no such"):
            client.submit_job({})

    def test_an_answer_of_something_else_is_quoted(self):
        client = client_answering(httpx.Response(502, text="<html>Bad Gateway"))

        with pytest.raises(DemoError, match="502: <html>Bad Gateway"):
            client.get_job("ftjob_1")

    def test_no_answer_is_an_error_of_the_demo(self):
        client = client_answering(httpx.ConnectError("Connection refused"))

        with pytest.raises(DemoError, match=r"GET /v1/models/mdl_1 got no answer: Connection"):
            client.get_model("mdl_1")


class TestIsReady:
    @pytest.mark.parametrize(
        ("response", "ready"),
        [
            (httpx.Response(200), True),
            (httpx.Response(503), False),
            (httpx.ConnectError("refused"), False),
        ],
    )
    def test_only_200_is_ready(self, response, ready):
        assert client_answering(response).is_ready() is ready


class TestKey:
    def test_is_sent_with_every_request(self):
        seen = []
        client_answering(httpx.Response(200, json={}), api_key="s3cret", seen=seen).get_job("j")

        assert seen[0].headers["Authorization"] == "Bearer s3cret"

    def test_is_not_shown_in_curl_lines(self):
        line = client_answering(httpx.Response(200), api_key="s3cret").curl("/v1/models")

        assert "s3cret" not in line
        assert '-H "Authorization: Bearer $KEY"' in line


class TestCurl:
    def test_a_shell_reads_the_words_that_were_meant(self):
        line = client_answering(httpx.Response(200)).curl(
            "/v1/models/m/classify?top_k=3", "-d", '{"name": "it\'s"}'
        )

        assert shlex.split(line) == [
            "curl",
            "-s",
            "-d",
            '{"name": "it\'s"}',
            URL + "/v1/models/m/classify?top_k=3",
        ]
