//! Where Redis is: one server, several that Sentinels watch over, or a cluster.

use std::{fmt, io, path::PathBuf};

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates, TlsMode,
    cluster::{ClusterClient, ClusterClientBuilder},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use super::link::PATIENCE;
use crate::secret_file;

/// What is given beside the URL. What is secret is in files: on a command line everybody could read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// The ACL user.
    pub(crate) user: Option<String>,
    /// The file that holds the password.
    pub(crate) password_file: Option<PathBuf>,
    /// The ACL user of the Sentinels.
    pub(crate) sentinel_user: Option<String>,
    /// The file that holds the Sentinels' password; none: they want none.
    pub(crate) sentinel_password_file: Option<PathBuf>,
    /// The certificates that are trusted, in PEM; none: the system's.
    pub(crate) ca_file: Option<PathBuf>,
}

impl Access {
    /// Whether anything is in files, which may be renewed.
    pub(super) fn has_files(&self) -> bool {
        [&self.password_file, &self.sentinel_password_file, &self.ca_file].into_iter().any(Option::is_some)
    }
}

/// What the files hold at present.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Secrets {
    password: Option<String>,
    sentinel_password: Option<String>,
    certificates: Option<String>,
}

impl Secrets {
    pub(super) fn read(access: &Access) -> Result<Self, InvalidUrl> {
        let password = |path: &Option<PathBuf>, option| read(path.as_ref(), option, secret_file::only_line);
        Ok(Self {
            password: password(&access.password_file, "--redis-password-file")?,
            sentinel_password: password(&access.sentinel_password_file, "--redis-sentinel-password-file")?,
            certificates: read(access.ca_file.as_ref(), "--redis-ca-file", Ok)?,
        })
    }
}

/// Why a text is no URL of a Redis. It never shows the text, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidUrl {
    #[error(
        "expected embedded, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/MASTER or \
         redis+cluster://HOST:PORT,HOST:PORT, with rediss in place of redis for TLS ({0})"
    )]
    Form(String),
    #[error("{option} {path}: {error}")]
    File { option: &'static str, path: String, error: std::io::Error },
}

impl From<RedisError> for InvalidUrl {
    fn from(error: RedisError) -> Self {
        Self::Form(error.to_string())
    }
}

/// Who is to be connected to.
pub(super) enum Address {
    Single(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The clients' own forms show more than is needed.
        f.write_str(match self {
            Self::Single(_) => "Single",
            Self::Sentinel(_) => "Sentinel",
            Self::Cluster(_) => "Cluster",
        })
    }
}

/// The parts of a URL, with what was given beside it.
struct Parts {
    user: Option<String>,
    password: Option<String>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
    tls: bool,
    certificates: Option<TlsCertificates>,
}

impl Address {
    /// Reads a URL, with what the files beside it hold.
    pub(super) fn new(url: &str, access: &Access, secrets: &Secrets) -> Result<Self, InvalidUrl> {
        let form = |problem: &str| InvalidUrl::Form(problem.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(|| form("it is neither"))?;
        let (tls, kind) = match scheme.split_once('+').unwrap_or((scheme, "")) {
            ("redis", kind) => (false, kind),
            ("rediss", kind) => (true, kind),
            _ => return Err(form("it is neither")),
        };
        if tls {
            // rustls asks for one; whoever was first is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let mut parts = Parts {
            user: access.user.clone(),
            password: secrets.password.clone(),
            sentinel_user: access.sentinel_user.clone(),
            sentinel_password: secrets.sentinel_password.clone(),
            tls,
            certificates: secrets
                .certificates
                .clone()
                .map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem.into_bytes()) }),
        };
        if kind != "sentinel" && (parts.sentinel_user.is_some() || parts.sentinel_password.is_some()) {
            return Err(form("a user or a password of Sentinels is given, and it is no redis+sentinel://"));
        }
        if kind.is_empty() {
            return single(url, parts).map(|client| Self::Single(Box::new(client)));
        }
        let (login, hosts_and_path) = rest.rsplit_once('@').map_or((None, rest), |(a, b)| (Some(a), b));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            parts.user = parts.user.or_else(|| Some(user.to_owned()).filter(|user| !user.is_empty()));
            parts.password =
                parts.password.or_else(|| Some(password.to_owned()).filter(|word| !word.is_empty()));
        }
        let (hosts, path) = hosts_and_path.split_once('/').unwrap_or((hosts_and_path, ""));
        let hosts = hosts.split(',').map(|host| host_port(host, tls)).collect::<Option<Vec<_>>>();
        let hosts = hosts.ok_or_else(|| form("a host is not HOST:PORT"))?;
        match kind {
            "sentinel" => sentinel(hosts, path, parts).map(|client| Self::Sentinel(Box::new(client))),
            "cluster" if path.is_empty() || path == "0" => {
                cluster(hosts, parts).map(|client| Self::Cluster(Box::new(client)))
            }
            "cluster" => Err(form("a cluster has no databases")),
            _ => Err(form("it is neither")),
        }
    }
}

/// What is taken from a file's text.
fn read(
    path: Option<&PathBuf>,
    option: &'static str,
    take: impl Fn(String) -> io::Result<String>,
) -> Result<Option<String>, InvalidUrl> {
    let failed = |path: &PathBuf, error| InvalidUrl::File { option, path: path.display().to_string(), error };
    path.map(|path| secret_file::read(path).and_then(&take).map_err(|error| failed(path, error))).transpose()
}

/// An address that is only ever compared and connected to: a bad host shows when it is.
fn host_port(text: &str, tls: bool) -> Option<ConnectionAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host).to_owned();
    let port = port.parse().ok().filter(|port| *port > 0)?;
    if host.is_empty() {
        return None;
    }
    Some(if tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    })
}

fn single(url: &str, parts: Parts) -> Result<Client, InvalidUrl> {
    let info: ConnectionInfo = url.into_connection_info()?;
    let mut settings = info.redis_settings().clone();
    if let Some(user) = &parts.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &parts.password {
        settings = settings.set_password(password);
    }
    let info = info.set_redis_settings(settings);
    Ok(match parts.certificates.filter(|_| parts.tls) {
        Some(certificates) => Client::build_with_tls(info, certificates)?,
        None => Client::open(info)?,
    })
}

fn sentinel(hosts: Vec<ConnectionAddr>, path: &str, parts: Parts) -> Result<SentinelClient, InvalidUrl> {
    let (master, database) = path.split_once('/').unwrap_or((path, "0"));
    let database: i64 = database.parse().map_err(|_| InvalidUrl::Form("the database is no number".into()))?;
    if master.is_empty() {
        return Err(InvalidUrl::Form("no name of the master after the hosts".into()));
    }
    let mut builder = SentinelClientBuilder::new(hosts, master, SentinelServerType::Master)?
        .set_client_to_redis_db(database);
    if parts.tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        builder = builder.set_client_to_sentinel_tls_mode(TlsMode::Secure);
        if let Some(certificates) = parts.certificates {
            builder = builder.set_client_to_sentinel_certificates(certificates.clone());
            builder = builder.set_client_to_redis_certificates(certificates);
        }
    }
    if let Some(user) = &parts.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &parts.password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(user) = &parts.sentinel_user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = &parts.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    Ok(builder.build()?)
}

fn cluster(hosts: Vec<ConnectionAddr>, parts: Parts) -> Result<ClusterClient, InvalidUrl> {
    // The builder wants all that Redis is told to be in each node's address, and alike.
    let infos =
        hosts.into_iter().map(IntoConnectionInfo::into_connection_info).collect::<Result<Vec<_>, _>>()?;
    let mut builder = ClusterClientBuilder::new(infos)
        .connection_timeout(PATIENCE)
        // A node that moved or failed is looked for again, but no claim waits for long.
        .retries(3)
        .min_retry_wait(20)
        .max_retry_wait(200);
    if parts.tls {
        builder = builder.tls(TlsMode::Secure);
        if let Some(certificates) = parts.certificates {
            builder = builder.certs(certificates);
        }
    }
    if let Some(user) = parts.user {
        builder = builder.username(user);
    }
    if let Some(password) = parts.password {
        builder = builder.password(password);
    }
    Ok(builder.build()?)
}
