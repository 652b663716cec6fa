//! Where a server and its dataset are: the URIs that people type.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use kv_proto::layout::dataset_name_is_valid;

use crate::ClientError;

/// Port of a server unless the URI names one.
pub const PORT_DEFAULT: u16 = 7471;

/// A server, and a dataset of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Over verbs: `rdma://host[:port][/dataset]`.
    Rdma {
        /// Name or address.
        host: String,
        /// Port; [`PORT_DEFAULT`] unless named.
        port: u16,
        /// The dataset.
        dataset: Option<String>,
    },
    /// On this machine: `local:/path/to/socket[?dataset=name]`.
    Local {
        /// The server's socket.
        socket: PathBuf,
        /// The dataset.
        dataset: Option<String>,
    },
}

impl Target {
    /// The dataset that it names.
    #[must_use]
    pub fn dataset(&self) -> Option<&str> {
        match self {
            Self::Rdma { dataset, .. } | Self::Local { dataset, .. } => dataset.as_deref(),
        }
    }

    /// How its URI begins.
    pub(crate) fn scheme(&self) -> &'static str {
        match self {
            Self::Rdma { .. } => "rdma",
            Self::Local { .. } => "local",
        }
    }

    /// The address as a fabric takes it: `host:port`, or the socket's path.
    ///
    /// # Errors
    /// [`ClientError::Target`] if the path is no UTF-8.
    pub fn address(&self) -> Result<String, ClientError> {
        match self {
            Self::Rdma { host, port, .. } if host.contains(':') => Ok(format!("[{host}]:{port}")),
            Self::Rdma { host, port, .. } => Ok(format!("{host}:{port}")),
            Self::Local { socket, .. } => socket.to_str().map(str::to_owned).ok_or(ClientError::Target {
                value: socket.display().to_string(),
                why: "the path is no UTF-8",
            }),
        }
    }

    /// The same server with another dataset.
    #[must_use]
    pub fn with_dataset(&self, name: &str) -> Self {
        let mut target = self.clone();
        match &mut target {
            Self::Rdma { dataset, .. } | Self::Local { dataset, .. } => *dataset = Some(name.to_owned()),
        }
        target
    }
}

fn dataset_name(value: &str, name: &str) -> Result<Option<String>, ClientError> {
    if name.is_empty() {
        return Ok(None);
    }
    if dataset_name_is_valid(name.as_bytes()) {
        return Ok(Some(name.to_owned()));
    }
    Err(ClientError::Target {
        value: value.to_owned(),
        why: "a dataset's name is 1 to 64 of a-z 0-9 . _ -",
    })
}

/// Host and port of `authority`: `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_and_port(value: &str, authority: &str) -> Result<(String, u16), ClientError> {
    let wrong = |why| ClientError::Target {
        value: value.to_owned(),
        why,
    };
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest
            .split_once(']')
            .ok_or_else(|| wrong("the `[` is never closed"))?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(wrong("something follows the `]`")),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(wrong("an IPv6 address goes in brackets")),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(wrong("it names no host"));
    }
    let port = match port {
        None => PORT_DEFAULT,
        Some(port) => port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| wrong("the port is no number from 1 to 65535"))?,
    };
    Ok((host.to_owned(), port))
}

impl FromStr for Target {
    type Err = ClientError;

    fn from_str(value: &str) -> Result<Self, ClientError> {
        let wrong = |why| ClientError::Target {
            value: value.to_owned(),
            why,
        };
        if let Some(rest) = value.strip_prefix("rdma://") {
            let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
            let (host, port) = host_and_port(value, authority)?;
            let dataset = dataset_name(value, name)?;
            return Ok(Self::Rdma { host, port, dataset });
        }
        if let Some(rest) = value.strip_prefix("local:") {
            let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
            let name = match query {
                "" => "",
                query => query
                    .strip_prefix("dataset=")
                    .ok_or_else(|| wrong("what follows the `?` is not dataset=NAME"))?,
            };
            if path.is_empty() {
                return Err(wrong("it names no socket"));
            }
            return Ok(Self::Local {
                socket: PathBuf::from(path),
                dataset: dataset_name(value, name)?,
            });
        }
        Err(wrong("it begins with neither rdma:// nor local:"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rdma { host, port, dataset } => {
                if host.contains(':') {
                    write!(f, "rdma://[{host}]")?;
                } else {
                    write!(f, "rdma://{host}")?;
                }
                if *port != PORT_DEFAULT {
                    write!(f, ":{port}")?;
                }
                dataset.iter().try_for_each(|name| write!(f, "/{name}"))
            }
            Self::Local { socket, dataset } => {
                write!(
                    f,
                    "local:{}",
                    String::from_utf8_lossy(socket.as_os_str().as_bytes())
                )?;
                dataset.iter().try_for_each(|name| write!(f, "?dataset={name}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdma(host: &str, port: u16, dataset: Option<&str>) -> Target {
        Target::Rdma {
            host: host.to_owned(),
            port,
            dataset: dataset.map(str::to_owned),
        }
    }

    #[test]
    fn what_people_type_is_understood_and_said_back() {
        let cases = [
            ("rdma://node7", rdma("node7", PORT_DEFAULT, None), "rdma://node7"),
            (
                "rdma://node7:7471/a.b",
                rdma("node7", 7471, Some("a.b")),
                "rdma://node7/a.b",
            ),
            (
                "rdma://10.0.0.1:99/x",
                rdma("10.0.0.1", 99, Some("x")),
                "rdma://10.0.0.1:99/x",
            ),
            (
                "rdma://[fe80::1]:99/",
                rdma("fe80::1", 99, None),
                "rdma://[fe80::1]:99",
            ),
            (
                "rdma://[::1]/d",
                rdma("::1", PORT_DEFAULT, Some("d")),
                "rdma://[::1]/d",
            ),
            (
                "local:/run/kv.sock?dataset=images",
                Target::Local {
                    socket: "/run/kv.sock".into(),
                    dataset: Some("images".to_owned()),
                },
                "local:/run/kv.sock?dataset=images",
            ),
        ];
        for (text, target, said) in cases {
            let parsed: Target = text.parse().unwrap();
            assert_eq!(parsed, target, "{text}");
            assert_eq!(parsed.to_string(), said);
            assert_eq!(said.parse::<Target>().unwrap(), target);
        }
        assert_eq!(rdma("::1", 5, None).address().unwrap(), "[::1]:5");
    }

    #[test]
    fn what_names_no_server_is_refused_with_the_value() {
        for text in [
            "",
            "node7",
            "http://x/y",
            "rdma://",
            "rdma:///d",
            "rdma://h:0/d",
            "rdma://h:70000",
            "rdma://::1/d",
            "rdma://[::1/d",
            "rdma://[::1]x/d",
            "rdma://h/UPPER",
            "rdma://h/a/b",
            "local:",
            "local:?dataset=x",
            "local:/s?name=x",
            "local:/s?dataset=A",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(
                matches!(&error, ClientError::Target { value, .. } if value == text),
                "{text}: {error}"
            );
        }
    }
}
