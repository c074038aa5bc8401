"""Names to classes, with suggestions for a name that does not exist. Imports no torch."""

import dataclasses
import difflib
import fnmatch
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from counterpoint.errors import OptionError, UnknownNameError

T = TypeVar("T")


def fold(name: str) -> str:
    """Fold case and punctuation: ``"Nash-MTL"`` and ``"nash_mtl"`` are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def closest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` valid names that look like ``name``, best first."""
    by_folded = {fold(candidate): candidate for candidate in valid}
    return [by_folded[match] for match in difflib.get_close_matches(fold(name), by_folded, n=count, cutoff=0.5)]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean a, b?"`` or an empty string where nothing is near."""
    matches = closest(name, valid)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not one of ``valid``."""
    valid = sorted(valid)
    hint = nearest(name, valid) or f"; there are: {', '.join(valid)}"
    return UnknownNameError(f"no {kind} is called {name!r}{hint}")


@dataclasses.dataclass(frozen=True)
class Option:
    """One constructor argument, read from the signature."""

    name: str
    type: str
    default: Any
    required: bool


@dataclasses.dataclass(frozen=True)
class Description:
    """What a family tells about one of its members, all read from the class itself."""

    key: str
    name: str
    kind: str
    summary: str
    facts: dict[str, str]
    options: tuple[Option, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return dataclasses.asdict(self)


class Rebuildable:
    """Keeps every constructor argument under its own name, so that ``repr`` and a saved configuration rebuild it."""

    def options(self) -> dict[str, Any]:
        """Return the constructor arguments that rebuild this object (without the generator)."""
        arguments = (name for name in inspect.signature(type(self)).parameters if name != "generator")
        return {name: getattr(self, name) for name in arguments}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        return f"{type(self).__name__}({arguments})"


class Registry(Generic[T]):
    """The classes of one family by key; made from the names that a package imports.

    Args:
        kind: What the members are called in messages, such as ``"balancer"``.
        base: Class that every member derives from.
        namespace: ``globals()`` of the package; classes that declare their own ``key`` are kept.
        facts: Class attributes that :meth:`describe` reports.
        given: Constructor arguments that the caller supplies, and that are no options.
    """

    def __init__(
        self,
        kind: str,
        base: type[T],
        namespace: Mapping[str, Any],
        *,
        facts: tuple[str, ...] = ("source", "provenance"),
        given: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self.base = base
        self.facts = facts
        self.given = given
        members = (value for value in namespace.values() if isinstance(value, type) and issubclass(value, base))
        self._classes: dict[str, type[T]] = {}
        for member in members:
            key = vars(member).get("key")
            if isinstance(key, str):
                if self._classes.get(fold(key), member) is not member:
                    raise OptionError(f"two {kind}s are called {key!r}")
                self._classes[fold(key)] = member

    def names(self, pattern: str = "*") -> list[str]:
        """Return the keys that match a shell pattern, sorted."""
        keys = (str(vars(member)["key"]) for member in self._classes.values())
        return sorted(key for key in keys if fnmatch.fnmatch(key, pattern))

    def get(self, name: str) -> type[T]:
        """Return the class called ``name``; case and punctuation do not matter.

        A class of somebody else's is named ``"package.module:Class"``, and imported.

        Raises:
            UnknownNameError: If there is none; the message has the nearest names.
            OptionError: If a class of somebody else's is not of this family.
        """
        if ":" in name:
            return self._import(name)
        found = self._classes.get(fold(name))
        if found is None:
            error = unknown(self.kind, name, self.names())
            raise error
        return found

    def _import(self, name: str) -> type[T]:
        """Import ``"package.module:Class"``."""
        module_name, _, attribute = name.partition(":")
        if not module_name or not attribute or module_name.startswith("."):
            raise UnknownNameError(f"{self.kind} {name!r}: a class of your own is named package.module:Class")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module is there, something that it imports is not
            raise UnknownNameError(f"{self.kind} {name!r}: there is no module {error.name!r} on the path") from error
        found = getattr(module, attribute, None)
        if found is None:
            fitting = [
                key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, self.base)
            ]
            hint = nearest(attribute, fitting)
            raise UnknownNameError(f"{self.kind} {name!r}: {module_name} has no {attribute!r}{hint}")
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise OptionError(
                f"{self.kind} {name!r}: must be a subclass of {self.base.__module__}.{self.base.__name__}"
            )
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise OptionError(f"{self.kind} {name!r}: has to define {', '.join(missing)}")
        return found

    def create(self, name: str, *args: object, **options: object) -> T:
        """Build the member called ``name``.

        Raises:
            UnknownNameError: If there is no such member.
            OptionError: If an option does not exist; the message has the nearest ones.
        """
        member = self.get(name)
        self.check_options(name, options)
        return member(*args, **options)

    def check_options(self, name: str, options: Mapping[str, object]) -> None:
        """Raise unless every key of ``options`` is an argument of the constructor.

        Raises:
            OptionError: If one is not; the message has the nearest ones.
        """
        member = self.get(name)
        valid = [option for option in inspect.signature(member).parameters if option != "self"]
        for option in options:
            if option not in valid:
                shown = [option for option in valid if option not in self.given]
                hint = (
                    nearest(option, shown) or nearest(option, valid) or f"; its options: {', '.join(shown) or 'none'}"
                )
                raise OptionError(f"{member.__name__} has no option {option!r}{hint}")

    def describe(self, name: str) -> Description:
        """Return the facts and options of the member called ``name``."""
        member = self.get(name)
        parameters = inspect.signature(member).parameters.values()
        options = tuple(
            Option(
                name=parameter.name,
                type=_type_name(parameter.annotation),
                default=None if parameter.default is parameter.empty else parameter.default,
                required=parameter.default is parameter.empty,
            )
            for parameter in parameters
            if parameter.name not in self.given
        )
        return Description(
            key=getattr(member, "key", name),
            name=member.__name__,
            kind=self.kind,
            summary=_summary(member),
            facts={fact: _fact(getattr(member, fact)) for fact in self.facts if getattr(member, fact, None)},
            options=options,
        )


def _summary(member: type) -> str:
    """Return the first paragraph of a docstring as plain text, without references to other objects."""
    first = (inspect.getdoc(member) or "").split("\n\n")[0].replace("\n", " ")
    first = re.sub(r"[;,]? see :\w+:`[^`]*`", "", first)
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", first).replace("``", "")


def _fact(value: object) -> str:
    """Return a fact as text; a set of words in order."""
    return ", ".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def _type_name(annotation: object) -> str:
    """Return an annotation as a reader would write it."""
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "").replace("torch.", "")
