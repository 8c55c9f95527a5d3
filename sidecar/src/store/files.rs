//! Files of replicated directories in the store, as it knows them: what they are is sealed.

use serde::{Deserialize, Serialize};

/// A file, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// A keyed hash of its name.
    pub(crate) field: String,
    /// What orders its records: the greater text is newer. It has no space.
    pub(crate) stamp: String,
    /// Whether it is gone: then the store may forget it in a while.
    pub(crate) gone: bool,
    /// Its name and its content.
    pub(crate) seal: Vec<u8>,
}

/// How far somebody has read the records of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilesPlace {
    /// The store's memory: with another one, reading begins anew. Nothing: at the beginning.
    pub(crate) generation: String,
    /// The number of the last change that was read.
    pub(crate) number: u64,
}

/// Some of what changed, in the order in which it did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FilesPage {
    /// Where to go on.
    pub(crate) place: FilesPlace,
    /// Each with the number of its change; none: that was all.
    pub(crate) files: Vec<(u64, FileRecord)>,
}

/// Records on one page: with the largest files it is still no burden.
pub(super) const PAGE: usize = 32;
