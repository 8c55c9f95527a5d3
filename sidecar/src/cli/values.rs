//! What options hold: read from text, with an explanation where that cannot be.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use affinity::NodeId;

use crate::replicate::Mode;

/// Where a sidecar listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path, such as unix:/run/mooring/mooring.sock".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "expected IP:PORT such as 127.0.0.1:7070, or unix:PATH such as unix:/run/mooring/mooring.sock"
                    .into()
            }),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A path that belongs to a node: ID=PATH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfNode {
    pub(crate) node: NodeId,
    pub(crate) path: PathBuf,
}

/// The sessions directory of a node.
pub(crate) type SessionsSpec = OfNode;
/// The configuration file of a node's Odoo.
pub(crate) type OdooConf = OfNode;

impl FromStr for OfNode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected ID=PATH such as odoo-1=/var/lib/odoo-1/sessions".to_owned();
        let (id, path) =
            text.split_once('=').filter(|(_, path)| path.starts_with('/')).ok_or_else(expected)?;
        Ok(Self { node: NodeId::new(id).map_err(|error| error.to_string())?, path: path.into() })
    }
}

impl OdooConf {
    /// Reads ID=PATH, where a person may name the path as seen from where they are.
    pub(crate) fn of_file(text: &str) -> Result<Self, String> {
        let expected = || "expected ID=PATH such as odoo-1=/etc/odoo/odoo.conf".to_owned();
        let (id, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or_else(expected)?;
        let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
        Ok(Self { node: NodeId::new(id).map_err(|error| error.to_string())?, path })
    }
}

/// A directory that is replicated: PATH=MODE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplicateSpec {
    pub(crate) path: PathBuf,
    /// What all directories of the same name have in common.
    pub(crate) set: String,
    pub(crate) mode: Mode,
}

impl FromStr for ReplicateSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected PATH=MODE with a MODE of newest or add, such as /var/lib/odoo-1/openid=newest"
                .to_owned()
        };
        let (path, mode) =
            text.rsplit_once('=').filter(|(path, _)| path.starts_with('/')).ok_or_else(expected)?;
        let mode = match mode {
            "newest" => Mode::Newest,
            "add" => Mode::Add,
            _ => return Err(expected()),
        };
        let path = PathBuf::from(path);
        let good = |name: &&str| {
            name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let set = path.file_name().and_then(|name| name.to_str()).filter(good);
        let set = set.ok_or("the directory's name must be 1 to 64 of the characters a-z A-Z 0-9 . _ -")?;
        Ok(Self { set: set.to_owned(), path, mode })
    }
}

/// Where the directory is kept.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    Embedded,
    /// Meant as a redis:// URL. It may hold a password and is never printed.
    Redis(String),
}

impl FromStr for StoreUrl {
    type Err = std::convert::Infallible;

    /// Refuses nothing: the parser of the command line would print what is refused. The store does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "embedded" { Self::Embedded } else { Self::Redis(text.to_owned()) })
    }
}

impl std::fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Redis(_) => "redis://…",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_s_password_is_not_printed() {
        let store: StoreUrl = "redis://user:secret@127.0.0.1/0".parse().unwrap();
        assert!(!format!("{store:?}").contains("secret"));
    }

    #[test]
    fn a_configuration_file_may_be_named_from_here() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(OdooConf::of_file("odoo-1=/etc/a=b.conf").unwrap().path, PathBuf::from("/etc/a=b.conf"));
        for path in ["odoo.conf", "./odoo.conf"] {
            let spec = OdooConf::of_file(&format!("odoo-1={path}")).unwrap();
            assert_eq!((spec.node.as_str(), spec.path), ("odoo-1", here.join("odoo.conf")));
        }
        for bad in ["", "/etc/odoo.conf", "odoo-1=", "odoo-1", "odoo 1=/etc/odoo.conf"] {
            assert!(OdooConf::of_file(bad).is_err(), "{bad}");
        }
        assert!("odoo-1=sessions".parse::<SessionsSpec>().is_err());
    }

    #[test]
    fn a_replicated_directory_has_a_path_a_name_and_a_mode() {
        let spec: ReplicateSpec = "/var/a=b/openid/=add".parse().unwrap();
        assert_eq!((spec.set.as_str(), spec.mode), ("openid", Mode::Add));
        assert_eq!(spec.path, PathBuf::from("/var/a=b/openid"));
        for bad in ["", "/a", "a=add", "/=add", "/a/..=add", "/a=", "/a=Add", "/a/b{c}=newest", "/ä=add"] {
            assert!(bad.parse::<ReplicateSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_understood_or_explained() {
        assert_eq!("127.0.0.1:1".parse(), Ok(Listen::Tcp(([127, 0, 0, 1], 1).into())));
        assert_eq!("unix:/a b".parse(), Ok(Listen::Unix("/a b".into())));
        for bad in ["", "unix:", "localhost:1", "127.0.0.1"] {
            assert!(bad.parse::<Listen>().unwrap_err().contains("unix:"), "{bad}");
        }
    }
}
