"""Two tools for trying `smollora chat --tools bench/chat_tools.py`: one harmless, one not."""

from pathlib import Path


def get_weather(city: str) -> dict:
    """Get the current weather of a city.

    Args:
        city: Name of the city, for instance Lisbon.
    """
    return {"city": city, "sky": "clear", "celsius": 21}


def delete_file(path: str) -> str:
    """Delete a file.

    Args:
        path: Path of the file.
    """
    Path(path).unlink()
    return f"{path} is gone"
