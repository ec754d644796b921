"""Profiles: overlays that are laid on a pipeline's tree. Mappings merge, lists and scalars replace, null deletes."""

from collections.abc import Mapping
from dataclasses import replace

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related, nearest
from lima2cli.document.places import START, Document, Place, Source, YamlNode
from lima2cli.document.syntax_errors import CONTROL, syntax_error
from lima2cli.document.yaml_tree import build, kind


@dataclass(frozen=True)
class Profile:
    """The text of an overlay, and the name of its file as users gave it."""

    file: str
    text: str

    @property
    def home(self) -> str:
        """Return the first step of paths into it; no key of a pipeline is like it."""
        return f"--profile {self.file}"


def read_source(source: Source, limit: int, findings: Findings, environment: Mapping[str, str]) -> YamlNode | None:
    """Return the tree of a text; None where nothing can be read, which has been reported."""
    if len(source.text) > limit:
        count = len(source.text)
        findings.add(Diagnostic("yaml-too-large", f"{count} characters; at most {limit} are read", span=START))
        return None
    if (control := CONTROL.search(source.text)) is not None:
        message = f"the character U+{ord(control[0]):04X} is not allowed in YAML"
        findings.add(syntax_error(source, message, control.start(), help='write it as an escape in "double quotes"'))
        return None
    return build(source, findings, environment)


def lay(
    root: YamlNode, profile: Profile, limit: int, findings: Findings, environment: Mapping[str, str]
) -> tuple[YamlNode, Document]:
    """Return the tree with a profile laid on it, and the profile as a document, for places in it.

    Mistakes in it are reported there, at paths that begin with `Profile.home`.
    """
    own, source = Findings(), Source(profile.file, profile.text.removeprefix("\ufeff"))
    over = read_source(source, limit, own, environment)
    document = Document(source.file, source.text, over or YamlNode(None, Place(source, START)))
    if over is not None:
        if isinstance(over.content, dict):
            root = _merged(root, over, (), own)
        else:
            message = f"a profile is a mapping of keys to change, not {kind(over.content)}"
            own.add(Diagnostic("profile-shape", message, help="for example `acquisition: {frames: 100}`"))
    for item in own:
        related = tuple(Related((profile.home, *other.at), other.label) for other in item.related)
        findings.add(replace(item, at=(profile.home, *item.at), related=related))
    return root, document


def _merged(base: YamlNode, over: YamlNode, at: KeyPath, findings: Findings) -> YamlNode:
    """Return a value with the one of an overlay in its place, or, where both are mappings, laid on it."""
    if not isinstance(over.content, dict):
        return over
    merges = isinstance(base.content, dict)
    content = dict(base.content) if isinstance(base.content, dict) else {}
    for key, value in over.content.items():
        below = (*at, key)
        if value.content is None and not value.bad:
            if key not in content:
                findings.add(_nothing(key, below, content))
            if merges:
                content.pop(key, None)
            else:  # a mapping that is new: the key is not to be missed as well
                content[key] = replace(value, bad=True)
        else:
            # where there is nothing yet, a mapping is laid on an empty one: nulls in it delete nothing, too
            content[key] = _merged(content.get(key, YamlNode(None, value.at)), value, below, findings)
    whole = base if merges else over
    return replace(
        whole,
        content=content,
        bad=over.bad or (merges and base.bad),
        size=1 + sum(node.size for node in content.values()),
        height=1 + max((node.height for node in content.values()), default=0),
    )


def _nothing(key: str, at: KeyPath, known: Mapping[str, YamlNode]) -> Diagnostic:
    message = f"`{key}: null` deletes a key of the pipeline, and there is no `{key}`"
    guess = nearest(key, known)
    help = f"did you mean `{guess}`?" if guess else f"`{key}: {{}}` takes all defaults"
    return Diagnostic("profile-null", message, at, on_key=True, help=help)


def explain_kinds(document: Document, findings: Findings) -> None:
    """Add the cure to findings about two kinds in one place of which one is a profile's: the other can be deleted."""
    for index, item in enumerate(findings.items):
        if item.rule == "one-kind" and item.related:
            first = item.related[0].at
            if document.place(first, True).file != document.place(item.at, True).file:
                help = f"the profile can delete the other: `{first[-1]}: null`"
                findings.items[index] = replace(item, help=help)
