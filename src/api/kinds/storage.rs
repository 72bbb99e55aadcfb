//! Rows of storage.k8s.io/v1.

mod claim;

pub(super) use claim::{ClaimStrategy, VolumeStrategy};

use super::Kind;
use super::print;
use super::row::{GET_PATCH_UPDATE, Row, names, subresources, texts};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("storage.k8s.io" "v1" "io.k8s.api.storage.v1", $($name)*)
    };
}

pub(super) static CSI_DRIVER: Kind = Row {
    unconditional_update: false,
    printer: print::CSI_DRIVER,
    ..Row::cluster(kind!("CSIDriver" "csidrivers" "csidriver"))
}
.build();

pub(super) static CSI_NODE: Kind = Row {
    unconditional_update: false,
    printer: print::CSI_NODE,
    ..Row::cluster(kind!("CSINode" "csinodes" "csinode"))
}
.build();

pub(super) static CSI_STORAGE_CAPACITY: Kind = Row {
    unconditional_update: false,
    ..Row::namespaced(kind!("CSIStorageCapacity" "csistoragecapacities" "csistoragecapacity"))
}
.build();

pub(super) static STORAGE_CLASS: Kind = Row {
    short_names: texts!["sc"],
    printer: print::STORAGE_CLASS,
    strategy: &claim::ClassStrategy,
    ..Row::cluster(kind!("StorageClass" "storageclasses" "storageclass"))
}
.build();

pub(super) static VOLUME_ATTACHMENT: Kind = Row {
    subresources: subresources!["status" "VolumeAttachment" GET_PATCH_UPDATE;],
    unconditional_update: false,
    printer: print::VOLUME_ATTACHMENT,
    strategy: &claim::AttachmentStrategy,
    ..Row::cluster(kind!("VolumeAttachment" "volumeattachments" "volumeattachment"))
}
.build();

pub(super) static VOLUME_ATTRIBUTES_CLASS: Kind = Row {
    short_names: texts!["vac"],
    printer: print::VOLUME_ATTRIBUTES_CLASS,
    ..Row::cluster(kind!("VolumeAttributesClass" "volumeattributesclasses" "volumeattributesclass"))
}
.build();
