"""What time it is elsewhere: the Date header of an HTTP server's answer, whatever else it answers."""

import ssl

from agent.domain.errors import SinkError


async def server_date(url: str, *, proxied: bool, seconds: float) -> str:
    """Return the Date header of the answer to a GET, "" where there is none. Raises SinkError where nobody answers."""
    import httpx2  # noqa: PLC0415 - 0.15 s

    try:
        # A context without an authority trusts nobody; where nothing is encrypted nobody is asked.
        needed = proxied or url.startswith("https:")
        context = httpx2.create_ssl_context() if needed else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with httpx2.AsyncClient(verify=context, trust_env=proxied, timeout=seconds) as client:
            answer = await client.send(client.build_request("GET", url), stream=True)
            await answer.aclose()
            return str(answer.headers.get("date", ""))
    except Exception as error:
        raise SinkError(f"no answer ({type(error).__name__})", transient=True) from error
