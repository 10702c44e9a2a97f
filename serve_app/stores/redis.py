"""Records in Redis: they outlive the head of the cluster. One hash a session; each call is one script, so atomic.

Every script touches one key, so a Redis Cluster will do as well as one server. Redis 5 or later; what is kept lies in
memory and expires by itself: give the server a `maxmemory` and it needs no disk.
"""

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from serve_app.session.resumption import Claimed, NotResumable, StoreUnavailable, Superseded

PREFIX = "voice-serve:session:1:"
"""The number counts the versions of the record."""

SAVE = """
local generation = tonumber(redis.call('HGET', KEYS[1], 'generation') or '0')
if generation > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'token_hash', ARGV[2], 'snapshot', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""
CLAIM = """
local record = redis.call('HMGET', KEYS[1], 'generation', 'token_hash', 'snapshot')
if not record[1] or record[3] == '' or record[2] ~= ARGV[1] then return false end
local generation = tonumber(record[1]) + 1
redis.call('HSET', KEYS[1], 'generation', generation, 'token_hash', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {generation, record[3]}
"""


class RedisStore:
    def __init__(self, url: str) -> None:
        """`url` may hold a password: it is shown nowhere. Nothing is connected before the first call."""
        self._redis: Any = Redis.from_url(url, decode_responses=True, socket_connect_timeout=1.0)
        self._save = self._redis.register_script(SAVE)
        self._claim = self._redis.register_script(CLAIM)

    async def save(
        self, session_id: str, generation: int, token_hash: str, snapshot: str, expires_s: float
    ) -> None:
        if not await self._ask(self._save, session_id, generation, token_hash, snapshot, _ms(expires_s)):
            raise Superseded

    async def claim(self, session_id: str, token_hash: str, new_hash: str, expires_s: float) -> Claimed:
        answer = await self._ask(self._claim, session_id, token_hash, new_hash, _ms(expires_s))
        if answer is None:
            raise NotResumable
        generation, snapshot = answer
        return Claimed(generation, snapshot)

    async def forget(self, session_id: str, generation: int, expires_s: float) -> None:
        await self.save(session_id, generation, "", "", expires_s)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _ask(self, script: Any, session_id: str, *arguments: Any) -> Any:
        try:
            return await script(keys=[PREFIX + session_id], args=arguments)
        except (RedisError, OSError, asyncio.IncompleteReadError) as error:
            raise StoreUnavailable(f"Redis: {type(error).__name__}") from error


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
