"""Results as JSON has them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


def plain(content: Any) -> Any:
    """Turn records into plain data; NaN becomes null."""
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        return {field.name: plain(getattr(content, field.name)) for field in dataclasses.fields(content)}
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
