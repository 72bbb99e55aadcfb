//! Bodies and what the API answers to them; the messages are those of Kubernetes 1.36.

use super::*;
use serde_json::json;

fn configmap(media: MediaType, body: &str, validation: FieldValidation) -> Result<Decoded> {
    let schema = scheme::find("io.k8s.api.core.v1.ConfigMap");
    decode(media, body.as_bytes(), schema, "v1", "ConfigMap", validation)
}

fn refused(body: &str, validation: FieldValidation) -> String {
    let status = configmap(MediaType::Json, body, validation).expect_err("refused");
    assert_eq!((status.code, status.reason.as_str()), (400, "BadRequest"));
    status.message
}

#[test]
fn field_validation_warns_refuses_or_is_silent() {
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","nmae":"y"},"data":{"a":"1"},"data":{"a":"2"}}"#;
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "2"}});
    let warned = configmap(MediaType::Json, body, FieldValidation::Warn).expect("accepted");
    assert_eq!(warned.object, object);
    assert_eq!(warned.warnings, ["duplicate field \"data\"", "unknown field \"metadata.nmae\""]);
    let ignored = configmap(MediaType::Json, body, FieldValidation::Ignore).expect("accepted");
    assert_eq!(ignored, Decoded { object, warnings: Vec::new() });
    assert_eq!(
        refused(body, FieldValidation::Strict),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: \
         duplicate field \"data\", unknown field \"metadata.nmae\""
    );
}

#[test]
fn refusals_are_worded_as_upstream_words_them() {
    let cases = [
        (
            r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}"#,
            "Secret in version \"v1\" cannot be handled as a ConfigMap: \
             converting (v1.Secret) to (core.ConfigMap): unknown conversion",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "Foo"}"#,
            "Foo in version \"v1\" cannot be handled as a ConfigMap: no kind \"Foo\" is registered for version \"v1\" \
             in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": 1}}"#,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: \
             json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "binaryData": {"a": "*"}}"#,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: illegal base64 data at input byte 0",
        ),
        (
            r#"{"apiVersion":"#,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; \
             json parse error: unexpected end of JSON input ({\"apiVersion\":)",
        ),
        (
            "x",
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; \
             json parse error: invalid character 'x' looking for beginning of value (78)",
        ),
    ];
    for (body, message) in cases {
        assert_eq!(refused(body, FieldValidation::Warn), message);
    }
}

#[test]
fn kind_and_version_fill_in_when_absent() {
    let decoded =
        configmap(MediaType::Json, r#"{"metadata":{"name":"a"}}"#, FieldValidation::Strict).expect("accepted");
    assert_eq!(decoded.object, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}));
    let other = r#"{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler"}"#;
    let schema = scheme::find("io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler");
    let kind = "HorizontalPodAutoscaler";
    let status = decode(MediaType::Json, other.as_bytes(), schema, "autoscaling/v2", kind, FieldValidation::Warn);
    assert_eq!(
        status.expect_err("refused").message,
        "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)"
    );
}

#[test]
fn delete_options_come_from_any_group() {
    let schema = scheme::find("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
    for api_version in ["v1", "meta.k8s.io/v1", "apps/v1"] {
        let body = format!(
            r#"{{"kind":"DeleteOptions","apiVersion":"{api_version}","gracePeriodSeconds":0,"propagationPolicy":"Background"}}"#
        );
        let decoded = decode(MediaType::Json, body.as_bytes(), schema, "v1", "DeleteOptions", FieldValidation::Warn);
        assert_eq!(decoded.expect("accepted").object["gracePeriodSeconds"], 0);
    }
}

#[test]
fn yaml_reads_as_json_does() {
    let body =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yy\n  creationTimestamp: null\ndata:\n  k: v\nbogus: 1\n";
    let decoded = configmap(MediaType::Yaml, body, FieldValidation::Warn).expect("accepted");
    let expected = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "yy"}, "data": {"k": "v"}});
    assert_eq!(decoded.object, expected);
    assert_eq!(decoded.warnings, ["unknown field \"bogus\""]);
}

#[test]
fn custom_resources_keep_every_field_and_need_a_kind() {
    let decode = |body: &str| decode(MediaType::Json, body.as_bytes(), None, "g/v1", "W", FieldValidation::Strict);
    let decoded = decode(r#"{"apiVersion":"g/v1","kind":"W","spec":{"any":null}}"#).expect("accepted");
    assert_eq!(decoded.object["spec"], json!({"any": null}));
    assert!(decode(r#"{"apiVersion":"g/v1"}"#).expect_err("refused").message.contains("Object 'Kind' is missing in"));
}

#[test]
fn a_patched_object_of_a_wrong_type_is_invalid() {
    let schema = scheme::find("io.k8s.api.core.v1.ConfigMap").expect("configmaps");
    let mut object = json!({"data": {"a": 1}});
    let status = check_patched(schema, &mut object, FieldValidation::Warn).expect_err("refused");
    assert_eq!(status.code, 422);
    assert!(status.message.starts_with(" \"\" is invalid: patch: Invalid value: "), "{}", status.message);
    let mut object = json!({"data": {"a": "1", "b": null}, "x": 1});
    let warnings = check_patched(schema, &mut object, FieldValidation::Warn).expect("accepted");
    assert_eq!((object, warnings), (json!({"data": {"a": "1", "b": ""}}), vec!["unknown field \"x\"".to_owned()]));
}

/// Writes fields by hand: (tag, bytes) and varints.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(mut self, tag: u8, number: u64) -> Self {
        self.varint(u64::from(tag) << 3);
        self.varint(number);
        self
    }

    fn bytes(mut self, tag: u8, bytes: impl AsRef<[u8]>) -> Self {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(bytes.as_ref().len() as u64);
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn message(self, tag: u8, inner: Self) -> Self {
        self.bytes(tag, inner.0)
    }

    #[allow(clippy::cast_possible_truncation, reason = "seven bits fit a byte")]
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn enveloped(self, api_version: &str, kind: &str) -> Vec<u8> {
        let meta = Self::default().bytes(1, api_version).bytes(2, kind);
        let unknown = Self::default().message(1, meta).message(2, self).bytes(3, "").bytes(4, "");
        [protobuf::MAGIC, &unknown.0].concat()
    }
}

/// A Pod as Go encodes it: plain scalars are written even when zero, pointers only when set.
#[test]
fn protobuf_decodes_as_go_would() {
    let meta = || Message::default();
    let quantity = Message::default().bytes(1, "cpu").message(2, Message::default().bytes(1, "1000m"));
    let port = Message::default().bytes(1, "").number(2, 0).number(3, 80).bytes(4, "TCP").bytes(5, "");
    let probe_action =
        Message::default().message(2, meta().bytes(1, "/x").message(2, meta().number(1, 1).bytes(3, "http")));
    let probe = meta().message(1, probe_action).number(2, 0).number(3, 5);
    let container = meta().bytes(1, "c").bytes(2, "i").bytes(5, "").message(6, port);
    let container = container.message(8, meta().message(1, quantity)).message(10, probe).bytes(13, "").bytes(14, "");
    let security = meta().number(2, 0).number(3, u64::MAX);
    let volume = meta().bytes(1, "v").message(2, meta().message(2, meta().bytes(1, "")));
    let spec = meta().message(1, volume).message(2, container).bytes(3, "").number(4, 0).bytes(10, "").number(11, 0);
    let spec = spec.message(14, security).number(21, 0);
    let label = meta().bytes(1, "a").bytes(2, "b");
    let object_meta = meta().bytes(1, "p").bytes(2, "").bytes(3, "").number(7, 0).message(8, meta()).message(11, label);
    let pod = meta().message(1, object_meta).message(2, spec).message(3, meta()).enveloped("v1", "Pod");
    let schema = scheme::find("io.k8s.api.core.v1.Pod");
    let decoded = decode(MediaType::Protobuf, &pod, schema, "v1", "Pod", FieldValidation::Strict).expect("accepted");
    let expected = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "status": {},
        "spec": {
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "securityContext": {"runAsUser": 0, "runAsNonRoot": true},
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{
                "name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"path": "/x", "port": "http"}, "timeoutSeconds": 5},
            }],
        },
    });
    assert_eq!(decoded, Decoded { object: expected, warnings: Vec::new() });
}

#[test]
fn protobuf_refuses_what_is_not() {
    let schema = scheme::find("io.k8s.api.core.v1.Pod");
    let decode = |body: &[u8]| decode(MediaType::Protobuf, body, schema, "v1", "Pod", FieldValidation::Warn);
    assert!(decode(b"{}").expect_err("refused").message.contains("expected prefix [107 56 115 0]"));
    assert!(decode(b"k8s\0\x12\x7f").expect_err("refused").message.contains("unexpected EOF"));
    let secret = Message::default().enveloped("v1", "Secret");
    assert!(decode(&secret).expect_err("refused").message.contains("converting (v1.Secret) to (core.Pod)"));
}

/// Bodies that kubectl 1.36 sent for `kubectl create …`.
#[test]
fn protobuf_of_kubectl_decodes() {
    use base64::Engine;
    let cases = include_str!("../../../tests/data/scheme/protobuf.json");
    let cases: Vec<Value> = serde_json::from_str(cases).expect("test data");
    for case in cases {
        let text = |name: &str| case[name].as_str().expect("test data");
        let body = base64::engine::general_purpose::STANDARD.decode(text("body")).expect("test data");
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let schema = scheme::find_kind(api_version, kind);
        assert!(schema.is_some(), "{kind}");
        let decoded = decode(MediaType::Protobuf, &body, schema, api_version, kind, FieldValidation::Strict);
        assert_eq!(decoded, Ok(Decoded { object: case["decoded"].clone(), warnings: Vec::new() }), "{kind}");
    }
}

#[test]
fn protobuf_reads_the_unions_of_json_schemas() {
    let text = || Message::default().bytes(5, "string");
    let property = |name: &str, schema: Message| Message::default().bytes(1, name).message(2, schema);
    let any = Message::default().bytes(8, Message::default().bytes(1, "{\"a\":1}").0);
    let open = Message::default().message(30, Message::default().number(1, 1));
    let typed = Message::default().message(30, Message::default().number(1, 1).message(2, text()));
    let one = Message::default().message(24, Message::default().message(1, text()));
    let many = Message::default().message(24, Message::default().message(2, text()).message(2, text()));
    let needs = Message::default().bytes(1, "x").message(2, Message::default().bytes(2, "y"));
    let schema = Message::default().message(29, property("any", any)).message(29, property("open", open));
    let schema = schema.message(29, property("typed", typed)).message(29, property("one", one));
    let schema = schema.message(29, property("many", many)).message(32, needs).number(38, 1);
    let version =
        Message::default().bytes(1, "v1").number(2, 1).number(3, 1).message(4, Message::default().message(1, schema));
    let crd = Message::default().message(2, Message::default().message(7, version)).enveloped("", "");
    let (api_version, kind) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let found = scheme::find_kind(api_version, kind);
    let decoded = decode(MediaType::Protobuf, &crd, found, api_version, kind, FieldValidation::Strict);
    let expected = json!({
        "properties": {
            "any": {"default": {"a": 1}}, "open": {"additionalProperties": true},
            "typed": {"additionalProperties": {"type": "string"}}, "one": {"items": {"type": "string"}},
            "many": {"items": [{"type": "string"}, {"type": "string"}]},
        },
        "dependencies": {"x": ["y"]}, "x-kubernetes-preserve-unknown-fields": true,
    });
    assert_eq!(decoded.expect("accepted").object["spec"]["versions"][0]["schema"]["openAPIV3Schema"], expected);
}

/// Every recorded answer survives the way into protobuf and back.
#[test]
fn protobuf_round_trips() {
    let cases = include_str!("../../../tests/data/scheme/defaults.json");
    let cases: Vec<Value> = serde_json::from_str(cases).expect("test data");
    for case in cases {
        let schema = scheme::find(case["type"].as_str().expect("test data")).expect("a type");
        let mut object = case["answered"].clone();
        check::check(schema, &mut object, false).expect("answers have their types");
        let (api_version, kind) = (object["apiVersion"].clone(), object["kind"].clone());
        let body = protobuf::encode(schema, &object);
        let (api_version, kind) = (api_version.as_str().unwrap_or_default(), kind.as_str().unwrap_or_default());
        let decoded = decode(MediaType::Protobuf, &body, Some(schema), api_version, kind, FieldValidation::Strict);
        assert_eq!(decoded.expect("accepted").object, object, "{}", case["recorded"]);
    }
}

/// Damaged bodies are refused or read, whatever byte is wrong; nothing panics.
#[test]
fn damaged_bodies_do_no_harm() {
    use base64::Engine;
    let cases = include_str!("../../../tests/data/scheme/protobuf.json");
    let cases: Vec<Value> = serde_json::from_str(cases).expect("test data");
    let mut refused = 0;
    for case in cases {
        let (api_version, kind) = (case["apiVersion"].as_str().expect("text"), case["kind"].as_str().expect("text"));
        let schema = scheme::find_kind(api_version, kind);
        let protobuf = case["body"].as_str().expect("text");
        let protobuf = base64::engine::general_purpose::STANDARD.decode(protobuf).expect("base64");
        let json = case["decoded"].to_string().into_bytes();
        for (media, body) in [(MediaType::Protobuf, protobuf), (MediaType::Json, json.clone()), (MediaType::Yaml, json)]
        {
            for at in 0..body.len() {
                let mut damaged = body.clone();
                damaged[at] = [0x80, b'"', 0x7f, b'['][at % 4];
                for body in [&damaged[..], &body[..at]] {
                    let result = decode(media, body, schema, api_version, kind, FieldValidation::Strict);
                    refused += usize::from(result.is_err());
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
