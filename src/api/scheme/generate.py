#!/usr/bin/env python3
"""Writes types.txt, the facts of the Kubernetes API that edgelet's scheme is built from.

    generate.py SWAGGER_JSON PROTO_DIR GO_PROGRAM... > types.txt

The schema and the merge keys come from the published swagger.json. Tag numbers, pointers and
`omitempty` come from the run-time type data of Go programs built from the same release (kubectl,
and helm for apiextensions), and are checked against the generated.proto files, which fill in for
types no program holds. The format is described at the top of the file it writes.
"""
import json
import pathlib
import re
import struct
import sys
from collections import defaultdict

HEADER = """\
# The stable API of Kubernetes v1.36, as facts; written by generate.py, never by hand. Two kinds of blocks:
#
# root GROUP/VERSION KIND PLURAL namespaced|cluster TYPE VERBS
#   /SUBRESOURCE GROUP/VERSION KIND VERBS
#
# type NAME [atomic]
#   FIELD SHAPE [@TAG[.TAG...]] [FLAG...]
#
# SHAPE: a kind or the name of a type; after [] a list of it, after {} a map of strings to it.
# TAG: the number in protobuf; a path where Go embeds one struct in another.
# FLAG: ! required; * a pointer in Go, so a zero is kept; + printed even when empty; :NAME the Go name
# of a scalar's type; list=map(KEYS)|set|atomic and map=atomic for server-side apply;
# patch=STRATEGIES and key=KEY for strategic merge.
"""

GO_KINDS = {1: "bool", 2: "int", 5: "int32", 6: "int64", 14: "float64", 17: "array", 20: "interface", 21: "map",
            22: "ptr", 23: "slice", 24: "string", 25: "struct"}

SPECIAL = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "fields-v1",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "micro-time",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch": "raw",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "time",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "raw",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": "json",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": "schema-or-array",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": "schema-or-bool",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": "schema-or-strings",
}

SCALARS = {("string", None): "string", ("string", "byte"): "bytes", ("integer", "int32"): "int32",
           ("integer", "int64"): "int64", ("boolean", None): "bool", ("number", "double"): "double"}

VERBS = {"post": "create", "put": "update", "connect": None, "watchlist": None}


class GoProgram:
    """The struct types of an unpacked, non-PIE 64-bit Go program."""

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()
        offset, = struct.unpack_from("<Q", self.data, 0x28)
        size, count, names = struct.unpack_from("<HHH", self.data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", self.data, offset + i * size) for i in range(count)]
        base = headers[names][4]
        self.sections = {self.text(base + h[0]): (h[3], h[4], h[5]) for h in headers}
        self.types, = struct.unpack_from("<Q", self.data, self.sections[".go.module"][1] + 296)

    def text(self, offset):
        return self.data[offset:self.data.index(b"\0", offset)].decode()

    def at(self, address):
        for start, offset, size in self.sections.values():
            if start and start <= address < start + size:
                return address - start + offset
        return None

    def varint_text(self, offset):
        length = shift = 0
        while True:
            byte = self.data[offset]
            offset += 1
            length |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return self.data[offset:offset + length].decode(errors="replace"), offset + length

    def name(self, address):
        offset = self.at(address)
        text, end = self.varint_text(offset + 1)
        tag = self.varint_text(end)[0] if self.data[offset] & 2 else ""
        return text, tag

    def kind(self, address):
        return GO_KINDS.get(self.data[self.at(address) + 23] & 31, "other")

    def element(self, address):
        skip = 56 if self.kind(address) == "map" else 48
        return struct.unpack_from("<Q", self.data, self.at(address) + skip)[0]

    def type_name(self, address):
        """`core/v1.Pod` with its whole package for structs, `v1.RestartPolicy` or `string` otherwise."""
        offset = self.at(address)
        name, _ = self.name(self.types + struct.unpack_from("<i", self.data, offset + 40)[0])
        flags = self.data[offset + 20]
        name = name[1:] if flags & 2 else name
        if flags & 1 and self.kind(address) == "struct":
            package, _ = self.name(self.types + struct.unpack_from("<i", self.data, offset + 80)[0])
            return package + "." + name.split(".")[-1]
        return name

    def structs(self):
        _, offset, size = self.sections[".typelink"]
        todo = [self.types + struct.unpack_from("<i", self.data, offset + i)[0] for i in range(0, size, 4)]
        seen, found = set(), {}
        while todo:
            address = todo.pop()
            if address in seen or self.at(address) is None:
                continue
            seen.add(address)
            kind = self.kind(address)
            if kind in ("ptr", "slice", "map", "array"):
                todo.append(self.element(address))
            if kind == "struct":
                first, count = struct.unpack_from("<QQ", self.data, self.at(address) + 56)
                fields = []
                for i in range(count):
                    name, kind_at, _ = struct.unpack_from("<QQQ", self.data, self.at(first) + 24 * i)
                    todo.append(kind_at)
                    fields.append((*self.name(name), self.kind(kind_at), self.type_name(kind_at)))
                found[self.type_name(address)] = fields
        return found


def go_fields(structs, name, prefix=()):
    """JSON name -> (tag path, Go kind, Go type, printed when empty), embedded structs flattened."""
    out = {}
    for _, tag, kind, go_type in structs[name]:
        parts = dict(re.findall(r'(\w+):"([^"]*)"', tag))
        json_name, *options = parts.get("json", "").split(",")
        number = [int(parts["protobuf"].split(",")[1])] if "protobuf" in parts else []
        if "inline" in options or (not json_name and kind == "struct"):
            inner = go_fields(structs, go_type, prefix + tuple(number))
            # TypeMeta: its fields travel in the envelope, not in the message.
            out.update(inner if number else {name: ((), *rest) for name, (_, *rest) in inner.items()})
        elif json_name and json_name != "-":
            always = "omitempty" not in options and "omitzero" not in options
            always |= kind == "struct" and "omitzero" not in options
            out[json_name] = (prefix + tuple(number), kind, go_type, always)
    return out


def proto_messages(folder):
    messages = {}
    for file in pathlib.Path(folder).rglob("generated.proto"):
        text = re.sub(r"//.*", "", file.read_text())
        package = re.search(r"^package (\S+);", text, re.M).group(1)
        for name, body in re.findall(r"^message (\w+) \{(.*?)^\}", text, re.M | re.S):
            fields = re.findall(r"(?:optional|repeated|required)?\s*(map<.*?>|[\w.]+)\s+(\w+)\s*=\s*(\d+)", body)
            messages[f"{package}.{name}"] = {field: int(number) for _, field, number in fields}
    return messages


def go_name(definition):
    path, _, name = definition.removeprefix("io.k8s.").rpartition(".")
    return "k8s.io/" + path.replace(".", "/") + "." + name


def shape(schema):
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return SPECIAL.get(name, name)
    if schema.get("type") == "array":
        return "[]" + shape(schema["items"])
    if "additionalProperties" in schema:
        inner = shape(schema["additionalProperties"])
        return "{}" + ("strings" if inner == "[]string" else inner)
    return SCALARS[(schema["type"], schema.get("format"))]


def flags(schema, required, go):
    out = ["!"] if required else []
    if go:
        tags, kind, go_type, always = go
        out += ["@" + ".".join(map(str, tags))] if tags else []
        out += ["*"] if kind == "ptr" else []
        out += ["+"] if always else []
        plain = go_type.lstrip("*")
        out += [":" + plain] if "type" in schema and "." in plain and not plain.startswith(("[", "map[")) else []
    kind = schema.get("x-kubernetes-list-type")
    if kind:
        out.append("list=" + (f"map({','.join(schema['x-kubernetes-list-map-keys'])})" if kind == "map" else kind))
    for key, word in (("map-type", "map"), ("patch-strategy", "patch"), ("patch-merge-key", "key")):
        if f"x-kubernetes-{key}" in schema:
            out.append(f"{word}={schema[f'x-kubernetes-{key}']}")
    return out


def stable(group, version):
    return re.fullmatch(r"v\d+", version) and (group, version) != ("", "internal")


def roots(paths):
    """(group, version, plural) -> facts of the resource, from the paths of the API."""
    out = {}
    for path, item in paths.items():
        match = re.fullmatch(
            r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)/(?P<ns>namespaces/\{namespace\}/)?"
            r"(?P<plural>[^/{]+)(?P<name>/\{name\})?(?:/(?P<sub>[^/{]+))?", path)
        if not match or match["plural"] == "watch" or not stable(match["group"] or "", match["version"]):
            continue
        key = (match["group"] or "", match["version"], match["plural"])
        row = out.setdefault(key, {"kind": None, "ns": False, "verbs": set(), "subs": {}})
        for method, op in item.items():
            if method == "parameters" or "x-kubernetes-action" not in op:
                continue
            gvk = op["x-kubernetes-group-version-kind"]
            verb = VERBS.get(op["x-kubernetes-action"], op["x-kubernetes-action"])
            if match["sub"]:
                if verb is None:
                    verb = {"get": "get", "post": "create"}.get(method)
                sub = row["subs"].setdefault(match["sub"], {"gvk": gvk, "verbs": set()})
                sub["verbs"] |= {verb} - {None}
                row["ns"] |= bool(match["ns"])
            elif verb:
                row["kind"] = gvk["kind"]
                row["ns"] |= bool(match["ns"])
                row["verbs"] |= {verb, "watch"} if verb == "list" else {verb}
    return out


def gv(group, version):
    return f"{group}/{version}" if group else version


def reachable(definitions, names):
    todo, seen = list(names), set()
    while todo:
        name = todo.pop()
        if name in seen or name in SPECIAL:
            continue
        seen.add(name)
        todo += [ref.rpartition("/")[2] for ref in re.findall(r'"\$ref": "([^"]+)"', json.dumps(definitions[name]))]
    return sorted(seen)


def main(swagger_path, proto_dir, *programs):
    swagger = json.load(open(swagger_path))
    definitions = swagger["definitions"]
    structs = {}
    for program in programs:
        for name, fields in GoProgram(program).structs().items():
            structs.setdefault(name, fields)
    messages = proto_messages(proto_dir)

    by_gvk = defaultdict(list)
    for name, schema in definitions.items():
        for one in schema.get("x-kubernetes-group-version-kind", []):
            by_gvk[(one["group"], one["version"], one["kind"])].append(name)

    lines, wanted = [HEADER], set()
    for (group, version, plural), row in sorted(roots(swagger["paths"]).items()):
        kind = row["kind"]
        name, = by_gvk[(group, version, kind)]
        wanted.add(name)
        wanted.update(by_gvk.get((group, version, kind + "List"), []))
        scope = "namespaced" if row["ns"] else "cluster"
        lines.append(f"root {gv(group, version)} {kind} {plural} {scope} {name} {','.join(sorted(row['verbs']))}")
        for sub, facts in sorted(row["subs"].items()):
            one = facts["gvk"]
            found = by_gvk.get((one["group"], one["version"], one["kind"]), [])
            wanted.update(found if stable(one["group"], one["version"]) else [])
            lines.append(f"  /{sub} {gv(one['group'], one['version'])} {one['kind']} {','.join(sorted(facts['verbs']))}")
    wanted.update(n for n in definitions if n.startswith("io.k8s.apimachinery.pkg.apis.meta.v1."))
    wanted.add("io.k8s.apimachinery.pkg.version.Info")

    for name in reachable(definitions, wanted):
        schema = definitions[name]
        struct_name = go_name(name)
        go = go_fields(structs, struct_name) if struct_name in structs else {}
        proto = messages.get(struct_name.replace("/", ".").replace("-", "_"), {})
        if not go:
            print(f"no Go type for {name}", file=sys.stderr)
            go = {field: ((number,), "", "", False) for field, number in proto.items()}
        tags = [facts[0] for facts in go.values() if facts[0]]
        if len(tags) != len(set(tags)):
            sys.exit(f"{name}: a tag appears twice")
        atomic = " atomic" if schema.get("x-kubernetes-map-type") == "atomic" else ""
        lines.append(f"\ntype {name}{atomic}")
        for field, one in sorted(schema.get("properties", {}).items()):
            facts = go.get(field)
            if facts is None:
                print(f"{name}.{field} is in the schema alone", file=sys.stderr)
            elif len(facts[0]) == 1 and field in proto and proto[field] != facts[0][0]:
                sys.exit(f"{name}.{field}: Go says tag {facts[0][0]}, proto says {proto[field]}")
            words = flags(one, field in schema.get("required", []), facts)
            lines.append(" ".join(["  " + field, shape(one), *words]))
    print("\n".join(lines))


main(*sys.argv[1:])
