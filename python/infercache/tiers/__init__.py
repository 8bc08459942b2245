"""Tiers behind the memory of the process: what talks to servers, and knows nothing of keys, entries or fences."""

from __future__ import annotations

from infercache.tiers.commands import Command, Script
from infercache.tiers.redis import RedisTier

__all__ = ["Command", "RedisTier", "Script"]
