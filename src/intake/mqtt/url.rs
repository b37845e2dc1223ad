//! Addresses of brokers: `mqtt://host[:1883]`, `mqtts://host[:8883]`, `ws://host[:80]/path`, `wss://host[:443]/path`,
//! `unix:///path/to/socket`. User names, passwords and queries do not belong there.

use url::Url;

/// Where a broker listens, and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Plain TCP, or TLS over it.
    Tcp { host: String, port: u16, tls: bool },
    /// WebSocket, by its whole address, or the same over TLS.
    WebSocket { url: String, tls: bool },
    /// A socket of this machine.
    Unix { path: String },
}

impl Endpoint {
    /// Reads an address, or says what is wrong with it. The text of the error never holds a password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write mqtt://HOST, mqtts://HOST, ws://HOST/PATH, wss://HOST/PATH or unix:///PATH";
        if text.is_empty() {
            return Err(format!("is missing; {FORMS}"));
        }
        let url = Url::parse(text).map_err(|error| format!("is no address ({error}); {FORMS}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user name or password; use username and password_file".to_owned());
        }
        if url.fragment().is_some() || (url.query().is_some() && !matches!(url.scheme(), "ws" | "wss")) {
            return Err(format!("must end after the port; {FORMS}"));
        }
        let host = url.host_str().map(|host| host.trim_matches(['[', ']']).to_owned()).filter(|host| !host.is_empty());
        let tls = matches!(url.scheme(), "mqtts" | "wss");
        match url.scheme() {
            "mqtt" | "mqtts" => {
                if !matches!(url.path(), "" | "/") {
                    return Err(format!("must end after the port; {FORMS}"));
                }
                let host = host.ok_or_else(|| format!("names no host; {FORMS}"))?;
                let port = url.port().unwrap_or(if tls { 8883 } else { 1883 });
                if port == 0 {
                    Err("port 0 cannot be connected to".to_owned())
                } else {
                    Ok(Self::Tcp { host, port, tls })
                }
            }
            "ws" | "wss" => {
                host.ok_or_else(|| format!("names no host; {FORMS}"))?;
                Ok(Self::WebSocket { url: url.to_string(), tls })
            }
            "unix" if host.is_none() && url.path().len() > 1 => Ok(Self::Unix { path: url.path().to_owned() }),
            "unix" => Err("a socket needs an absolute path, as in unix:///run/mosquitto.sock".to_owned()),
            other => Err(format!("{other}:// is not known; {FORMS}")),
        }
    }

    /// Whether the connection is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: true, .. } | Self::WebSocket { tls: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_their_default_ports() {
        let tcp = |host: &str, port, tls| Ok(Endpoint::Tcp { host: host.to_owned(), port, tls });
        assert_eq!(Endpoint::parse("mqtt://broker"), tcp("broker", 1883, false));
        assert_eq!(Endpoint::parse("mqtts://broker.plant:9999/"), tcp("broker.plant", 9999, true));
        assert_eq!(Endpoint::parse("mqtts://[::1]"), tcp("::1", 8883, true));
        let ws = Endpoint::WebSocket { url: "wss://broker/mqtt".to_owned(), tls: true };
        assert_eq!(Endpoint::parse("wss://broker/mqtt"), Ok(ws));
        assert_eq!(Endpoint::parse("unix:///run/m.sock"), Ok(Endpoint::Unix { path: "/run/m.sock".to_owned() }));
    }

    #[test]
    fn mistakes_are_named_and_secrets_stay_secret() {
        for (text, what) in [
            ("", "missing"),
            ("broker:1883", "not known"),
            ("broker", "no address"),
            ("http://broker", "http:// is not known"),
            ("mqtt://", "no"),
            ("mqtt://broker/topic", "end after the port"),
            ("mqtt://broker?client_id=x", "end after the port"),
            ("unix://run/m.sock", "absolute path"),
            ("mqtt://broker:0", "port 0"),
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
        assert!(!Endpoint::parse("mqtt://me:hunter2@broker").unwrap_err().contains("hunter2"));
    }
}
