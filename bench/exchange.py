"""One request with its answer over HTTP, as a client sees it that checks everything."""

import aiohttp
import orjson

from bench.checked import Ask, Came, Result, judge_answer, note

CHAT_PATH = "/v1/chat/completions"
EMBEDDINGS_PATH = "/v1/embeddings"
# Shorter than any server's, so that none closes a connection that is about to be used.
KEEP_ALIVE_SECONDS = 2.0
_BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)


async def exchange(session: aiohttp.ClientSession, url: str, result: Result) -> None:
    """Send what `result` asks, read to the end, and check; raises nothing for what servers do.

    `url` is the root of the proxy; the session's time-out is what counts as hung.
    """
    ask = result.ask
    headers = dict(ask.headers)
    if ask.body:
        headers["content-type"] = "application/json"
    try:
        response = await session.request(
            "POST" if ask.body else "GET",
            url + _path(ask),
            data=orjson.dumps(ask.body) if ask.body else None,
            headers=headers,
        )
    except TimeoutError:
        note(result, Came.HUNG, "no headers")
        return
    except _BROKEN as error:
        note(result, Came.NO_ANSWER, f"{type(error).__name__}: {error}")
        return
    async with response:
        result.status = response.status
        result.x_cache = response.headers.get("x-cache", "")
        result.cache_status = response.headers.get("cache-status", "")
        content = b""
        try:
            async for chunk in response.content.iter_any():
                content += chunk
        except TimeoutError:
            note(result, Came.HUNG, f"after {len(content)} bytes")
        except _BROKEN as error:
            note(result, Came.BROKEN, f"{type(error).__name__} after {len(content)} bytes")
        else:
            judge_answer(result, content, response.content_type)


def _path(ask: Ask) -> str:
    if ask.path:
        return f"/v1{ask.path}"
    return CHAT_PATH if ask.is_chat else EMBEDDINGS_PATH
