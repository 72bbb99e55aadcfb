//! The messages between kubelet and device plugins, read and written by hand: a dozen fields are no reason for a
//! code generator. Pure. Source: k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto.

use crate::runtime::{Device, Mount};
use std::collections::BTreeMap;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("read message: {0}")]
pub struct Malformed(&'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// Devices of one resource: whether each is healthy, by its id.
pub type Devices = BTreeMap<String, bool>;

/// A plugin introduces itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Registration {
    pub version: String,
    /// Name of the plugin's socket, beside the kubelet's.
    pub endpoint: String,
    pub resource: String,
}

/// What a container is to get for the devices chosen for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    pub env: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Names of CDI devices, which this runtime cannot make.
    pub cdi_devices: Vec<String>,
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Fields in their order; those of kinds that no message here has are passed over.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        while !self.0.is_empty() {
            let key = self.number()?;
            let tag = key >> 3;
            match key & 7 {
                0 => return Ok(Some((tag, Value::Number(self.number()?)))),
                1 => drop(self.take(8)?),
                2 => {
                    let length = usize::try_from(self.number()?).map_err(|_| Malformed("a length"))?;
                    return Ok(Some((tag, Value::Bytes(self.take(length)?))));
                }
                5 => drop(self.take(4)?),
                _ => return Err(Malformed("a field of unknown kind")),
            }
        }
        Ok(None)
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed("a number of more than ten bytes"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Hands each field to `field`; what it does not know it ignores, as protobuf wants.
fn each<'a>(bytes: &'a [u8], mut field: impl FnMut(u64, Value<'a>) -> Result<()>) -> Result<()> {
    let mut fields = Fields(bytes);
    while let Some((tag, value)) = fields.next()? {
        field(tag, value)?;
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("text that is not UTF-8"))
}

/// One entry of a map of strings.
fn entry(bytes: &[u8]) -> Result<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    each(bytes, |tag, field| {
        match (tag, field) {
            (1, Value::Bytes(bytes)) => key = text(bytes)?,
            (2, Value::Bytes(bytes)) => value = text(bytes)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((key, value))
}

/// `RegisterRequest`.
pub fn registration(bytes: &[u8]) -> Result<Registration> {
    let mut read = Registration::default();
    each(bytes, |tag, field| {
        match (tag, field) {
            (1, Value::Bytes(bytes)) => read.version = text(bytes)?,
            (2, Value::Bytes(bytes)) => read.endpoint = text(bytes)?,
            (3, Value::Bytes(bytes)) => read.resource = text(bytes)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(read)
}

/// `ListAndWatchResponse`.
pub fn devices(bytes: &[u8]) -> Result<Devices> {
    let mut devices = Devices::new();
    each(bytes, |tag, field| {
        let (1, Value::Bytes(bytes)) = (tag, field) else { return Ok(()) };
        let (mut id, mut healthy) = (String::new(), false);
        each(bytes, |tag, field| {
            match (tag, field) {
                (1, Value::Bytes(bytes)) => id = text(bytes)?,
                (2, Value::Bytes(bytes)) => healthy = bytes == b"Healthy",
                _ => {}
            }
            Ok(())
        })?;
        devices.insert(id, healthy);
        Ok(())
    })?;
    Ok(devices)
}

/// `AllocateRequest` for one container.
pub fn allocate_request(ids: &[String]) -> Vec<u8> {
    let mut container = Vec::new();
    for id in ids {
        put(&mut container, 1, id.as_bytes());
    }
    let mut request = Vec::new();
    put(&mut request, 1, &container);
    request
}

/// `PreStartContainerRequest`.
pub fn pre_start_request(ids: &[String]) -> Vec<u8> {
    let mut request = Vec::new();
    for id in ids {
        put(&mut request, 1, id.as_bytes());
    }
    request
}

/// `DevicePluginOptions`: whether the plugin wants to be called before a container starts.
pub fn pre_start_required(bytes: &[u8]) -> Result<bool> {
    let mut required = false;
    each(bytes, |tag, field| {
        if let (1, Value::Number(number)) = (tag, field) {
            required = number != 0;
        }
        Ok(())
    })?;
    Ok(required)
}

/// `AllocateResponse` for one container.
pub fn grant(bytes: &[u8]) -> Result<Grant> {
    let mut grant = None;
    each(bytes, |tag, field| {
        if let (1, Value::Bytes(bytes)) = (tag, field) {
            grant = Some(container_grant(bytes)?);
        }
        Ok(())
    })?;
    grant.ok_or(Malformed("it answers for no container"))
}

fn container_grant(bytes: &[u8]) -> Result<Grant> {
    let mut grant = Grant::default();
    each(bytes, |tag, field| {
        let Value::Bytes(bytes) = field else { return Ok(()) };
        match tag {
            1 => {
                let (name, value) = entry(bytes)?;
                grant.env.insert(name, value);
            }
            2 => grant.mounts.push(mount(bytes)?),
            3 => grant.devices.push(device(bytes)?),
            5 => grant.cdi_devices.push(entry(bytes)?.0),
            _ => {}
        }
        Ok(())
    })?;
    Ok(grant)
}

fn mount(bytes: &[u8]) -> Result<Mount> {
    let mut mount = Mount::default();
    each(bytes, |tag, field| {
        match (tag, field) {
            (1, Value::Bytes(bytes)) => mount.destination = text(bytes)?,
            (2, Value::Bytes(bytes)) => mount.source = text(bytes)?.into(),
            (3, Value::Number(number)) => mount.read_only = number != 0,
            _ => {}
        }
        Ok(())
    })?;
    Ok(mount)
}

fn device(bytes: &[u8]) -> Result<Device> {
    let mut device = Device::default();
    each(bytes, |tag, field| {
        match (tag, field) {
            (1, Value::Bytes(bytes)) => device.container_path = text(bytes)?,
            (2, Value::Bytes(bytes)) => device.host_path = text(bytes)?,
            (3, Value::Bytes(bytes)) => device.permissions = text(bytes)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(device)
}

fn put(message: &mut Vec<u8>, tag: u64, bytes: &[u8]) {
    put_number(message, tag << 3 | 2);
    put_number(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn put_number(message: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return message.push(low & 0x7f);
        }
        message.push(low | 0x80);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A message of fields that are bytes.
    pub fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
        let mut message = Vec::new();
        for (tag, bytes) in fields {
            put(&mut message, *tag, bytes);
        }
        message
    }

    #[test]
    fn what_plugins_say_is_read_and_what_is_new_to_us_is_passed_over() {
        let mut bytes =
            message(&[(1, b"v1beta1"), (2, b"p.sock"), (3, b"example.com/tpu"), (4, b"\x08\x01"), (9, b"x")]);
        bytes.extend([0x50, 0x96, 0x01]); // field 10, the number 150
        let read = registration(&bytes).unwrap();
        assert_eq!((read.version.as_str(), read.endpoint.as_str()), ("v1beta1", "p.sock"));
        assert_eq!(read.resource, "example.com/tpu");

        let one = message(&[(1, b"a"), (2, b"Healthy")]);
        let other = message(&[(1, b"b"), (2, b"Unhealthy"), (3, b"")]);
        let read = devices(&message(&[(1, &one), (1, &other)])).unwrap();
        assert_eq!(read, Devices::from([("a".into(), true), ("b".into(), false)]));
        assert_eq!(devices(b"").unwrap(), Devices::new());
    }

    #[test]
    fn a_grant_has_variables_mounts_and_devices() {
        let device = message(&[(1, b"/dev/tpu"), (2, b"/dev/apex_0"), (3, b"rw")]);
        let mut mount = message(&[(1, b"/opt/lib"), (2, b"/usr/lib/tpu")]);
        mount.extend([0x18, 1]);
        let container = message(&[(1, &message(&[(1, b"TPU"), (2, b"0")])), (2, &mount), (3, &device), (4, b"")]);
        let read = grant(&message(&[(1, &container)])).unwrap();
        assert_eq!(read.env, BTreeMap::from([("TPU".into(), "0".into())]));
        assert_eq!((read.mounts[0].destination.as_str(), read.mounts[0].read_only), ("/opt/lib", true));
        assert_eq!(read.devices[0].host_path, "/dev/apex_0");
        assert_eq!(grant(b""), Err(Malformed("it answers for no container")));
    }

    #[test]
    fn requests_are_as_protobuf_has_them() {
        assert_eq!(allocate_request(&["ab".into(), "c".into()]), b"\x0a\x07\x0a\x02ab\x0a\x01c");
        let long = allocate_request(&["x".repeat(200)]);
        assert_eq!(long[..7], [0x0a, 0xcb, 0x01, 0x0a, 0xc8, 0x01, b'x']);
        assert!(pre_start_required(b"\x08\x01").unwrap());
        assert!(!pre_start_required(b"").unwrap());
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        for bytes in
            [&b"\x0a"[..], b"\x0a\x05ab", b"\x0b", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0a\x02\xff\xfe"]
        {
            assert!(registration(bytes).is_err(), "{bytes:?}");
        }
        // A length near the end of numbers does not wrap.
        assert!(devices(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").is_err());
    }
}
