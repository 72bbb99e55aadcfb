//! Printers of volumes and the storage group.

use super::{Printer, UNSET, age, flag, list, or, quantity, texts};
use crate::api::kinds::row::{AGE, NAME, boolean, columns, integer, string, wide};
use crate::api::object::{Object, ObjectExt};
use serde_json::Value;

pub(in crate::api::kinds) const PERSISTENT_VOLUME: Printer = Printer::new(
    columns![
        NAME,
        string("Capacity", "Size of the volume."),
        string("Access Modes", "Ways it can be mounted."),
        string("Reclaim Policy", "What becomes of it after its claim."),
        string("Status", "Whether it is free, bound or released."),
        string("Claim", "Claim it is bound to."),
        string("StorageClass", "Class it belongs to."),
        string("VolumeAttributesClass", "Class of its attributes."),
        string("Reason", "Why it is in this state."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ],
    |volume, now| {
        let claim = match volume.at(&["spec", "claimRef"]).filter(|claim| claim.is_object()) {
            Some(claim) => format!("{}/{}", claim.str_at(&["namespace"]), claim.str_at(&["name"])),
            None => String::new(),
        };
        cells![
            volume.name(),
            quantity(volume.at(&["spec", "capacity", "storage"])),
            access_modes(volume, &["spec", "accessModes"]),
            volume.str_at(&["spec", "persistentVolumeReclaimPolicy"]),
            phase(volume),
            claim,
            class(volume),
            or(volume, &["spec", "volumeAttributesClassName"], UNSET),
            volume.str_at(&["status", "reason"]),
            age(volume, now),
            or(volume, &["spec", "volumeMode"], UNSET),
        ]
    },
);

pub(in crate::api::kinds) const PERSISTENT_VOLUME_CLAIM: Printer = Printer::new(
    columns![
        NAME,
        string("Status", "Whether it has its volume."),
        string("Volume", "Volume it is bound to."),
        string("Capacity", "Size of that volume."),
        string("Access Modes", "Ways it can be mounted."),
        string("StorageClass", "Class it asks for."),
        string("VolumeAttributesClass", "Class of its attributes."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ],
    |claim, now| {
        let volume = claim.str_at(&["spec", "volumeName"]);
        let (capacity, modes) = match volume {
            "" => (String::new(), String::new()),
            _ => (
                quantity(claim.at(&["status", "capacity", "storage"])),
                access_modes(claim, &["status", "accessModes"]),
            ),
        };
        cells![
            claim.name(),
            phase(claim),
            volume,
            capacity,
            modes,
            class(claim),
            or(claim, &["spec", "volumeAttributesClassName"], UNSET),
            age(claim, now),
            or(claim, &["spec", "volumeMode"], UNSET),
        ]
    },
);

fn phase(object: &Object) -> &str {
    if object.deletion_timestamp().is_some() { "Terminating" } else { object.str_at(&["status", "phase"]) }
}

/// The class, in the annotation of old or in the field.
fn class(object: &Object) -> &str {
    let annotated = object.annotation("volume.beta.kubernetes.io/storage-class");
    annotated.unwrap_or_else(|| object.str_at(&["spec", "storageClassName"]))
}

fn access_modes(object: &Object, path: &[&str]) -> String {
    let modes = texts(object, path);
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let found = short.into_iter().filter(|(mode, _)| modes.contains(mode)).map(|(_, short)| short);
    found.collect::<Vec<_>>().join(",")
}

pub(in crate::api::kinds) const STORAGE_CLASS: Printer = Printer::new(
    columns![
        NAME,
        string("Provisioner", "What makes its volumes."),
        string("ReclaimPolicy", "What becomes of volumes after their claims."),
        string("VolumeBindingMode", "When volumes are made and bound."),
        string("AllowVolumeExpansion", "Whether claims may grow."),
        AGE,
    ],
    |class, now| {
        cells![
            default_marked(
                class,
                &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            ),
            class.str_at(&["provisioner"]),
            or(class, &["reclaimPolicy"], "Delete"),
            or(class, &["volumeBindingMode"], "Immediate"),
            flag(class, &["allowVolumeExpansion"]),
            age(class, now),
        ]
    },
);

fn default_marked(class: &Object, annotations: &[&str]) -> String {
    let is_default = annotations.iter().any(|name| class.annotation(name) == Some("true"));
    format!("{}{}", class.name(), if is_default { " (default)" } else { "" })
}

pub(in crate::api::kinds) const VOLUME_ATTRIBUTES_CLASS: Printer =
    Printer::new(columns![NAME, string("DriverName", "Driver the attributes are for."), AGE], |class, now| {
        cells![class.name(), class.str_at(&["driverName"]), age(class, now)]
    });

pub(in crate::api::kinds) const VOLUME_ATTACHMENT: Printer = Printer::new(
    columns![
        NAME,
        string("Attacher", "Driver that attaches."),
        string("PV", "Volume attached."),
        string("Node", "Node it is attached to."),
        boolean("Attached", "Whether it is attached now."),
        AGE,
    ],
    |object, now| {
        cells![
            object.name(),
            object.str_at(&["spec", "attacher"]),
            object.str_at(&["spec", "source", "persistentVolumeName"]),
            object.str_at(&["spec", "nodeName"]),
            flag(object, &["status", "attached"]),
            age(object, now),
        ]
    },
);

pub(in crate::api::kinds) const CSI_NODE: Printer =
    Printer::new(columns![NAME, integer("Drivers", "Drivers installed on the node."), AGE], |object, now| {
        cells![object.name(), list(object, &["spec", "drivers"]).len(), age(object, now)]
    });

pub(in crate::api::kinds) const CSI_DRIVER: Printer = Printer::new(
    columns![
        NAME,
        boolean("AttachRequired", "Whether volumes are attached before they are mounted."),
        boolean("PodInfoOnMount", "Whether the driver is told about the pod."),
        boolean("StorageCapacity", "Whether the scheduler heeds the driver's capacity."),
        string("TokenRequests", "Audiences of the tokens the driver gets."),
        boolean("RequiresRepublish", "Whether the driver is called again and again."),
        string("Modes", "Lifecycles of the driver's volumes."),
        AGE,
    ],
    |driver, now| {
        let attach = driver.at(&["spec", "attachRequired"]).and_then(Value::as_bool).unwrap_or(true);
        let tokens = match driver.at(&["spec", "tokenRequests"]).and_then(Value::as_array) {
            Some(tokens) => tokens.iter().map(|one| one.str_at(&["audience"])).collect::<Vec<_>>().join(","),
            None => UNSET.to_owned(),
        };
        let modes = texts(driver, &["spec", "volumeLifecycleModes"]).join(",");
        cells![
            driver.name(),
            attach,
            flag(driver, &["spec", "podInfoOnMount"]),
            flag(driver, &["spec", "storageCapacity"]),
            tokens,
            flag(driver, &["spec", "requiresRepublish"]),
            if modes.is_empty() { super::NONE.to_owned() } else { modes },
            age(driver, now),
        ]
    },
);
