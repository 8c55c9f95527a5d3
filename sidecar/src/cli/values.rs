//! What options hold: read from text, with an explanation where that cannot be.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use affinity::NodeId;

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
    fn addresses_are_understood_or_explained() {
        assert_eq!("127.0.0.1:1".parse(), Ok(Listen::Tcp(([127, 0, 0, 1], 1).into())));
        assert_eq!("unix:/a b".parse(), Ok(Listen::Unix("/a b".into())));
        for bad in ["", "unix:", "localhost:1", "127.0.0.1"] {
            assert!(bad.parse::<Listen>().unwrap_err().contains("unix:"), "{bad}");
        }
    }
}
