"""A server on this machine that speaks OpenAI's chat completions, with answers a test writes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from saelab.atlas.endpoint import Endpoint


class Server:
    """An OpenAI-compatible service whose answers a function writes."""

    def __init__(self, answer):
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.failures: list[tuple[int, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.headers.append(dict(self.headers))
                assert self.path == "/v1/chat/completions"
                if server.failures:
                    status, _ = server.failures.pop(0)
                    self.send_response(status)
                    self.send_header("Retry-After", "0")
                    self.end_headers()
                    return
                server.requests.append(body)
                text = answer(body["messages"][-1]["content"])
                reply = {
                    "choices": [{"message": {"role": "assistant", "content": text}}],
                    "usage": {"prompt_tokens": 11, "completion_tokens": 3},
                }
                content = (text if text == "not json" else json.dumps(reply)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        self.endpoint = Endpoint(
            url=f"http://127.0.0.1:{self.http.server_port}/v1", model="tester", retries=1
        )

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
