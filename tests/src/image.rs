//! Container images as `FROM scratch` with a few files would be, made without an engine: the same files
//! give the same bytes.
//!
//! The archive is an OCI image layout that also carries what `docker load` of any version reads.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What Istio and Envoy Gateway take a filter from.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Something in an image's file system.
enum Entry {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
}

/// An image to be made.
pub struct Image {
    reference: String,
    entries: BTreeMap<PathBuf, (Entry, u32, u64)>,
    /// What a container of it runs and as whom, in the words of the OCI image configuration.
    pub config: Value,
}

impl Image {
    /// An empty image that is known as `reference`, such as `mooring:0.1.0`.
    pub fn new(reference: &str) -> Self {
        Self { reference: reference.to_owned(), entries: BTreeMap::new(), config: json!({}) }
    }

    /// Adds a file of somebody's (a number, also of their group) with a mode.
    pub fn file(self, path: impl AsRef<Path>, content: Vec<u8>, mode: u32, owner: u64) -> Self {
        self.with(path.as_ref(), Entry::File(content), mode, owner)
    }

    /// Adds an empty folder. A volume that is new takes its owner from there.
    pub fn folder(self, path: impl AsRef<Path>, mode: u32, owner: u64) -> Self {
        self.with(path.as_ref(), Entry::Folder, mode, owner)
    }

    /// Adds a symbolic link.
    pub fn link(self, path: impl AsRef<Path>, to: impl Into<PathBuf>) -> Self {
        self.with(path.as_ref(), Entry::Link(to.into()), 0o777, 0)
    }

    fn with(mut self, path: &Path, entry: Entry, mode: u32, owner: u64) -> Self {
        let path = path.strip_prefix("/").unwrap_or(path);
        for folder in path.ancestors().skip(1).filter(|folder| folder.parent().is_some()) {
            self.entries.entry(folder.to_owned()).or_insert((Entry::Folder, 0o755, 0));
        }
        self.entries.insert(path.to_owned(), (entry, mode, owner));
        self
    }

    /// Writes the image to an archive; returns its digest, `sha256:…`, as registries know it.
    ///
    /// # Errors
    /// If the archive cannot be written.
    pub fn save(&self, to: &Path) -> Result<String> {
        let files = self.files()?;
        let mut packer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
        packer.write_all(&files)?;
        let layer = packer.finish()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest(&files)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask images"}],
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": digest(&layer), "size": layer.len()}],
        })
        .to_string()
        .into_bytes();
        let known_as = digest(&manifest);
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": known_as,
                "size": manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": self.reference},
            }],
        });
        let docker = json!([{
            "Config": blob(&digest(&config)),
            "RepoTags": [self.reference],
            "Layers": [blob(&digest(&layer))],
        }]);
        let mut archive = Archive::new(File::create(to).with_context(|| to.display().to_string())?);
        archive.file("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
        archive.file("index.json", index.to_string().as_bytes())?;
        archive.file("manifest.json", docker.to_string().as_bytes())?;
        for content in [&config, &layer, &manifest] {
            archive.file(&blob(&digest(content)), content)?;
        }
        archive.0.into_inner()?.flush()?;
        Ok(known_as)
    }

    /// The file system, as a layer that is not packed.
    fn files(&self) -> io::Result<Vec<u8>> {
        let mut archive = Archive::new(Vec::new());
        for (path, (entry, mode, owner)) in &self.entries {
            archive.entry(path, entry, *mode, *owner)?;
        }
        archive.0.into_inner()
    }
}

/// A tar in which nothing depends on who makes it, or when.
struct Archive<W: Write>(tar::Builder<W>);

impl<W: Write> Archive<W> {
    fn new(to: W) -> Self {
        Self(tar::Builder::new(to))
    }

    fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let mut header = header(0o644, 0);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content)
    }

    fn entry(&mut self, path: &Path, entry: &Entry, mode: u32, owner: u64) -> io::Result<()> {
        let mut header = header(mode, owner);
        match entry {
            Entry::Folder => {
                header.set_entry_type(EntryType::Directory);
                self.0.append_data(&mut header, path, io::empty())
            }
            Entry::File(content) => {
                header.set_size(content.len() as u64);
                self.0.append_data(&mut header, path, content.as_slice())
            }
            Entry::Link(to) => {
                header.set_entry_type(EntryType::Symlink);
                self.0.append_link(&mut header, path, to)
            }
        }
    }
}

fn header(mode: u32, owner: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_size(0);
    header.set_mtime(0);
    header
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// This machine's architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
