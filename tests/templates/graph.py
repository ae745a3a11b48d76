"""A template as Python builds it, and its JSON: a saved workflow, or a subgraph blueprint."""

import uuid
from dataclasses import dataclass, field

from workflow_files import inputs_of, is_widget

from .layout import SIZES, Box, Placed, arrange

NOTE_COLOUR = {"color": "#432", "bgcolor": "#653"}
GROUP_COLOUR = "#3f789e"


@dataclass
class Node:
    """A node: its values by input name, an Output of another node where it is linked."""

    id: int
    type: str
    values: dict
    info: dict  # of the schema snapshot
    title: str | None
    box: Box
    properties: dict

    def __getitem__(self, name: str) -> "Output":
        names = self.info["output_name"] or self.info["output"]
        return Output(self, names.index(name))

    def links(self):
        """(input slot, Output, type) of the linked inputs."""
        for slot, name in enumerate(inputs_of(self.info)):
            if isinstance(self.values.get(name), Output):
                yield slot, self.values[name]

    def widgets(self):
        """(name, value) of the widgets, in the order in which a workflow saves them."""
        for name, spec in inputs_of(self.info).items():
            if not is_widget(spec):
                continue
            options = spec[1] if len(spec) > 1 else {}
            value = self.values.get(name)
            if value is None or isinstance(value, Output):
                value = options.get("default", "")
            yield name, value
            if options.get("control_after_generate"):
                yield "control_after_generate", self.values.get("control_after_generate", "randomize")


@dataclass(frozen=True)
class Output:
    """One output of a node."""

    node: Node
    slot: int

    @property
    def type(self) -> str:
        return self.node.info["output"][self.slot]


@dataclass
class Template:
    """A graph in groups of columns.

    Args:
        name: the file's name, which ComfyUI's dialog shows.
        schema: the schema snapshot of the node classes.
        scene: the prompt that the final image must satisfy, for the pixel judge; None where the demo has no such scene.
    """

    name: str
    schema: dict
    scene: str | None = None
    placed: list[Placed] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def group(self, title: str, *columns: int):
        """Begins a group of these columns; `add` then adds to it."""
        self.placed.append(Placed((columns[0], columns[-1]), title))

    def add(self, node_type: str, column: int | None = None, title: str | None = None, box_width: int = 0,
            space: int = 0, properties: dict | None = None, **values) -> Node:  # fmt: skip
        """Adds a node to the group, in its first column unless another is named, with `space` above it."""
        unknown = set(values) - set(inputs_of(self.schema[node_type])) - {"control_after_generate"}
        if unknown:
            raise ValueError(f"{self.name}: {node_type} has no {unknown}")
        box = Box(0, space, box_width or SIZES[node_type][0], SIZES[node_type][1])
        node = Node(len(self.nodes) + 1, node_type, values, self.schema[node_type], title, box, properties or {})
        self.nodes.append(node)
        group = self.placed[-1]
        group.nodes.append((node, group.columns[0] if column is None else column))
        return node

    def note(self, text: str, *columns: int, top: float = 0):
        """The note, below what the columns hold so far and not above `top`."""
        self.placed.append(Placed((columns[0], columns[-1]), text=text, box=Box(y=top)))

    def workflow(self) -> dict:
        """The template as ComfyUI saves a workflow."""
        arrange(self.placed)
        links, nodes = self._links_and_nodes()
        note_id = len(self.nodes) + 1
        nodes += [_note(note_id, item) for item in self.placed if item.text]
        groups = [_group(k + 1, item) for k, item in enumerate(item for item in self.placed if not item.text)]
        return {
            "revision": 0, "last_node_id": note_id, "last_link_id": len(links), "nodes": nodes, "links": links,
            "groups": groups, "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip

    def _links_and_nodes(self, promoted=()) -> tuple[list, list]:
        """Links as [id, source, slot, target, slot, type], and the nodes.

        `promoted` are (node id, input name) that the inputs of a subgraph are linked to, after all other links.
        """
        links = []
        for node in self.nodes:
            for slot, source in node.links():
                links.append([len(links) + 1, source.node.id, source.slot, node.id, slot, source.type])
        into = {(link[3], link[4]): link[0] for link in links}
        for k, (node_id, name) in enumerate(promoted):
            slot = list(inputs_of(self.nodes[node_id - 1].info)).index(name)
            into[node_id, slot] = len(links) + 1 + k
        return links, [_saved(node, order, links, into) for order, node in enumerate(self.nodes)]

    def blueprint(self, output: Output, promoted: list[tuple[Node, str]], description: str) -> dict:
        """The graph as a subgraph blueprint whose node shows the promoted widgets and has one output.

        Each promoted widget is an input of the subgraph. The subgraph's node saves no values of its own, so those of
        the inner nodes apply.
        """
        arrange(self.placed)
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://github.com/janus-native/janus-native/{self.name}"))
        pairs = [(node.id, name) for node, name in promoted]
        links, nodes = self._links_and_nodes(pairs)
        objects = [_link_object(*link) for link in links]
        inputs = []
        for k, (node, name) in enumerate(promoted):
            spec = inputs_of(node.info)[name]
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            slot = list(inputs_of(node.info)).index(name)
            objects.append(_link_object(len(links) + 1 + k, -10, k, node.id, slot, kind))
            inputs.append({"id": _slot_id(key, name), "name": name, "type": kind, "linkIds": [len(links) + 1 + k]})
        last = len(objects) + 1
        objects.append(_link_object(last, output.node.id, output.slot, -20, 0, output.type))
        for node in nodes:
            if node["id"] == output.node.id:
                node["outputs"][output.slot]["links"] = [last]
        right = max(node.box.right for node in self.nodes)
        outer = {
            "id": 1, "type": key, "pos": [0, 0], "size": [400, 460], "flags": {}, "order": 0, "mode": 0,
            "inputs": [
                {"name": i["name"], "type": i["type"], "widget": {"name": i["name"]}, "link": None} for i in inputs
            ],
            "outputs": [{"name": output.type, "type": output.type, "links": []}],
            "title": self.name,
            "properties": {}, "widgets_values": [],
        }  # fmt: skip
        subgraph = {
            "id": key, "version": 1, "revision": 0, "config": {}, "name": self.name,
            "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": last, "lastRerouteId": 0},
            "inputNode": {"id": -10, "bounding": [-220, 40, 128, 40 + 20 * len(inputs)]},
            "outputNode": {"id": -20, "bounding": [right + 60, 70, 128, 60]},
            "inputs": inputs,
            "outputs": [{"id": _slot_id(key, "out"), "name": output.type, "type": output.type, "linkIds": [last]}],
            "widgets": [], "nodes": nodes, "groups": [], "links": objects, "extra": {},
            "category": "Image generation and editing/Text to image", "description": description,
        }  # fmt: skip
        return {
            "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [outer], "links": [],
            "definitions": {"subgraphs": [subgraph]}, "version": 0.4, "extra": {},
        }  # fmt: skip


def _saved(node: Node, order: int, links: list, into: dict) -> dict:
    inputs = []
    for slot, (name, spec) in enumerate(inputs_of(node.info).items()):
        kind = "COMBO" if isinstance(spec[0], list) else spec[0]
        entry = {"name": name, "type": kind, "link": into.get((node.id, slot))}
        if is_widget(spec):
            entry["widget"] = {"name": name}
        if name in node.info["input"].get("optional", {}):
            entry["shape"] = 7
        inputs.append(entry)
    names = node.info["output_name"] or node.info["output"]
    outputs = []
    for slot, kind in enumerate(node.info["output"]):
        out = [link[0] for link in links if link[1] == node.id and link[2] == slot]
        outputs.append({"name": names[slot], "type": kind, "links": out})
        if node.info["output_is_list"][slot]:
            outputs[-1]["shape"] = 6
    saved = {
        "id": node.id, "type": node.type, "pos": [node.box.x, node.box.y], "size": [node.box.width, node.box.height],
        "flags": {}, "order": order, "mode": 0, "inputs": inputs, "outputs": outputs,
        "properties": {"Node name for S&R": node.type, **node.properties},
    }  # fmt: skip
    values = [value for _, value in node.widgets()]
    if values:
        saved["widgets_values"] = values
    if node.title:
        saved["title"] = node.title
    return saved


def _note(node_id: int, item: Placed) -> dict:
    return {
        "id": node_id, "type": "MarkdownNote", "pos": [item.box.x, item.box.y],
        "size": [item.box.width, item.box.height], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
        "title": "About", "properties": {}, "widgets_values": [item.text], **NOTE_COLOUR,
    }  # fmt: skip


def _group(group_id: int, item: Placed) -> dict:
    box = item.box
    return {
        "id": group_id, "title": item.title, "bounding": [box.x, box.y, box.width, box.height],
        "color": GROUP_COLOUR, "font_size": 24, "flags": {},
    }  # fmt: skip


def _link_object(link_id, source, out, target, slot, kind) -> dict:
    return {
        "id": link_id, "origin_id": source, "origin_slot": out, "target_id": target, "target_slot": slot, "type": kind,
    }  # fmt: skip


def _slot_id(key: str, name: str) -> str:
    return str(uuid.uuid5(uuid.UUID(key), name))
