"""Requests the HTTP service refuses: each gets its status and the one error body."""

import base64
import gzip
import json
import random
import socket

import pytest
from starlette.testclient import TestClient

from tests.service_support import CLASSIFY, MAX_BYTES, as_files, error_of, picture, wide_picture

MULTIPART = {"Content-Type": "multipart/form-data; boundary=B"}
FILE_PART = b'--B\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    "query",
    [
        *("experts=yes", "experts=", "top_k=0", "top_k=-1", "top_k=many", "top_k=1.5", "top_k="),
        *("blend=1.1", "blend=-0.1", "blend=nan", "blend=inf", "blend=half", "topk=3", "%00=%ff"),
        f"top_k={'9' * 5000}",
        *("top_k=1_0", "top_k=%205", "top_k=5%20", "top_k=%2B5", "top_k=%D9%A3", "top_k=0x5"),
        *("blend=1e400", "blend=0_1", "blend=%200.5", "blend=%D9%A0", "blend=infinity", "blend=1."),
        *("top_k=3&top_k=3", "blend=0.5&blend=1", "experts=true&experts=false"),
        *("model=digits&model=digits", "version=1&version=2"),
    ],
)
def test_a_wrong_option_is_400(client: TestClient, query: str) -> None:
    message = error_of(client.post(f"{CLASSIFY}?{query}", content=picture()), 400, "bad_request")
    assert len(message) < 200


def test_an_empty_body_is_400(client: TestClient) -> None:
    message = error_of(client.post(CLASSIFY), 400, "bad_request")
    assert "no body" in message


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (FILE_PART + b"data\r\n--B--", "multipart/form-data", "boundary"),
        (FILE_PART + b"data\r\n--B--", f"multipart/form-data; boundary={'B' * 999}", "malformed"),
        (b"no form at all", MULTIPART["Content-Type"], "malformed"),
        (FILE_PART + b"data", MULTIPART["Content-Type"], "closing boundary"),
        (FILE_PART + b"data\r\n--B\r\n", MULTIPART["Content-Type"], "closing boundary"),
        (b"--B--\r\n", MULTIPART["Content-Type"], "no file"),
        (b"", MULTIPART["Content-Type"], "closing boundary"),
        (b"--B\r\n\r\ndata\r\n--B--", MULTIPART["Content-Type"], "image=@"),
        (FILE_PART + b"data\r\n--B\r\n\r\ndata\r\n--B--", MULTIPART["Content-Type"], "not a file"),
    ],
)
def test_a_malformed_form_is_400(
    client: TestClient, body: bytes, content_type: str, reason: str
) -> None:
    response = client.post(CLASSIFY, content=body, headers={"Content-Type": content_type})
    assert reason in error_of(response, 400, "bad_request")


@pytest.mark.parametrize("name", [b"content-disposition", b"CONTENT-DISPOSITION"])
def test_headers_of_a_part_are_named_in_either_case(client: TestClient, name: bytes) -> None:
    part = FILE_PART.replace(b"Content-Disposition", name) + picture()
    response = client.post(CLASSIFY, content=part + b"\r\n--B--\r\n", headers=MULTIPART)
    assert response.status_code == 200


def test_a_url_is_never_fetched(client: TestClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/image.png"
        files = [("image", (None, url.encode()))]
        error_of(client.post(CLASSIFY, files=files), 400, "bad_request")
        error_of(client.post(f"{CLASSIFY}?url={url}", content=picture()), 400, "bad_request")
        error_of(client.post(CLASSIFY, content=url.encode()), 415, "unsupported_image")
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


def test_too_many_images_are_400(client: TestClient) -> None:
    response = client.post(CLASSIFY, files=as_files(*[picture()] * 5))
    assert "more than 4 images" in error_of(response, 400, "bad_request")


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", f"{CLASSIFY}/", "/v1/model", "/v1/models/digits/x", "/%2e%2e/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_404(client: TestClient, method: str, path: str) -> None:
    error_of(client.request(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CLASSIFY, {"POST"}), ("PUT", CLASSIFY, {"POST"}), ("POST", "/", {"GET", "HEAD"})],
)
def test_a_wrong_method_is_405(
    client: TestClient, method: str, path: str, allowed: set[str]
) -> None:
    response = client.request(method, path)
    error_of(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


def test_too_many_bytes_are_413(client: TestClient) -> None:
    body = bytes(MAX_BYTES + 1)
    assert str(MAX_BYTES) in error_of(client.post(CLASSIFY, content=body), 413, "too_large")
    error_of(client.post(CLASSIFY, files={"a": body}), 413, "too_large")
    at_the_limit = client.post(CLASSIFY, content=body[:-1])
    error_of(at_the_limit, 415, "unsupported_image")


def test_too_many_pixels_are_413(client: TestClient) -> None:
    message = error_of(client.post(CLASSIFY, content=wide_picture()), 413, "too_large")
    assert "2000 x 1000" in message


@pytest.mark.parametrize("content_type", ["text/html", "application/xml", "multipart/mixed", "x"])
def test_another_content_type_is_415(client: TestClient, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = client.post(CLASSIFY, content=picture(), headers=headers)
    assert content_type in error_of(response, 415, "unsupported_image")


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZip"])
@pytest.mark.parametrize("path", [CLASSIFY, "/sdk/classify"])
def test_a_compressed_body_is_415(client: TestClient, path: str, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    body = json.dumps({"image": base64.b64encode(picture()).decode()}).encode()
    response = client.post(path, content=gzip.compress(body), headers=headers)
    assert "Content-Encoding" in error_of(response, 415, "unsupported_image")
    plain = client.post(path, content=body, headers={**headers, "Content-Encoding": "identity"})
    assert plain.status_code == 200


def test_bytes_of_no_image_are_415(client: TestClient) -> None:
    error_of(client.post(CLASSIFY, content=b"<svg/>"), 415, "unsupported_image")
    error_of(client.post(CLASSIFY, files={"a": b"<svg/>"}), 415, "unsupported_image")


def test_a_damaged_image_is_422(client: TestClient) -> None:
    error_of(client.post(CLASSIFY, content=picture()[:-200]), 422, "decode_failed")


def test_no_form_gives_a_500(client: TestClient) -> None:
    generator = random.Random(0)
    form = FILE_PART + picture() + b"\r\n" + FILE_PART + picture(1) + b"\r\n--B--\r\n"
    content_type = b'multipart/form-data; boundary="B"; charset=utf-8'
    for _ in range(200):
        body, header = bytearray(form), bytearray(content_type)
        for _ in range(generator.randrange(4)):
            start = generator.randrange(len(body))
            body[start : start + generator.randrange(3)] = generator.randbytes(2)
        if generator.random() < 0.5:
            header[generator.randrange(19, len(header))] = generator.choice(b"\"\\;*=%\x80 'B")
        headers = [(b"Content-Type", bytes(header))]
        response = client.post(CLASSIFY, content=bytes(body), headers=headers)
        assert response.status_code in (200, 400, 415, 422), (response.text, header, body)
