//! What a fleet is told: where, how many, how fast.

use std::path::PathBuf;
use std::sync::Arc;

use rumqttc::QoS;
use url::Url;

use crate::simulate::payload::Device;

/// Connections at most: enough for any broker's per-connection limits, few enough for any machine.
const CONNECTIONS_MAX: usize = 8;

/// Where to publish, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    pub(super) login: Option<(String, String)>,
    pub(super) url_shown: String,
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OptionsError(String);

impl Target {
    /// Reads `mqtt://[user[:password]@]host[:port]` or `mqtts://...`; for `mqtts` the authorities in `ca_file` are trusted,
    /// or those of the system.
    pub fn parse(url: &str, ca_file: Option<PathBuf>) -> Result<Self, OptionsError> {
        let wrong = |what: &str| OptionsError(format!("{what}: write mqtt://host:1883 or mqtts://host:8883"));
        let parsed = Url::parse(url).map_err(|error| wrong(&format!("this is no URL ({error})")))?;
        let (port, secure) = match parsed.scheme() {
            "mqtt" => (1883, false),
            "mqtts" => (8883, true),
            other => return Err(wrong(&format!("the scheme {other:?} is not known"))),
        };
        let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("the URL names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = parsed.port().unwrap_or(port);
        let login = (!parsed.username().is_empty())
            .then(|| (parsed.username().to_owned(), parsed.password().unwrap_or_default().to_owned()));
        let tls = if secure { Some(Arc::new(tls_config(ca_file)?)) } else { None };
        let url_shown = format!("{}://{host}:{port}", parsed.scheme());
        Ok(Self { host, port, tls, login, url_shown })
    }
}

impl Target {
    /// The URL without credentials.
    pub fn shown(&self) -> &str {
        &self.url_shown
    }
}

fn tls_config(ca_file: Option<PathBuf>) -> Result<rustls::ClientConfig, OptionsError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca_file {
        let unreadable = |error| OptionsError(format!("cannot read certificates from {}: {error}", path.display()));
        for certificate in CertificateDer::pem_file_iter(&path).map_err(unreadable)? {
            roots.add(certificate.map_err(unreadable)?).map_err(|error| OptionsError(error.to_string()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(OptionsError("no certificate authority to trust: give one with --ca-file".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| OptionsError(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A fleet of devices.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The broker.
    pub target: Target,
    /// How many devices, 1 and up.
    pub devices: usize,
    /// Readings per second, all devices together. `None`: as fast as the broker acknowledges.
    pub rate: Option<f64>,
    /// Quality of service of the publishes.
    pub qos: crate::record::Qos,
    /// Readings in all. `None`: until stopped.
    pub count: Option<u64>,
    /// Topic; `{device}` is replaced.
    pub topic: String,
    /// Devices are called `PREFIX-001`, ...
    pub prefix: String,
    /// The same seed gives the same values.
    pub seed: u64,
    /// Distinguishes this fleet's sessions at the broker from those of others.
    pub session: String,
}

impl FleetOptions {
    pub(super) fn connections(&self) -> usize {
        self.devices.clamp(1, CONNECTIONS_MAX)
    }

    pub(super) fn device(&self, index: usize) -> Device {
        Device::new(format!("{}-{:03}", self.prefix, index + 1), self.seed)
    }

    pub(super) fn device_indices(&self, lane: usize) -> impl Iterator<Item = usize> + use<> {
        (lane..self.devices).step_by(self.connections())
    }

    pub(super) fn device_index(&self, lane: usize, slot: usize) -> usize {
        lane + slot * self.connections()
    }

    pub(super) fn topic(&self, device: &str) -> String {
        self.topic.replace("{device}", device)
    }

    pub(super) fn client_id(&self, lane: usize) -> String {
        format!("fieldpost-sim-{}-{lane}", self.session)
    }

    pub(super) fn mqtt(&self, client_id: String, clean_session: bool) -> rumqttc::MqttOptions {
        let mut mqtt = rumqttc::MqttOptions::new(client_id, &self.target.host, self.target.port);
        mqtt.set_clean_session(clean_session).set_inflight(super::WINDOW as u16);
        mqtt.set_keep_alive(std::time::Duration::from_secs(15));
        if let Some((user, password)) = &self.target.login {
            mqtt.set_credentials(user, password);
        }
        if let Some(tls) = &self.target.tls {
            let config = rumqttc::TlsConfiguration::Rustls(Arc::clone(tls));
            mqtt.set_transport(rumqttc::Transport::tls_with_config(config));
        }
        mqtt
    }
}

/// The client's word for a quality of service.
pub(super) fn qos(qos: crate::record::Qos) -> QoS {
    match qos {
        crate::record::Qos::AtMostOnce => QoS::AtMostOnce,
        crate::record::Qos::AtLeastOnce => QoS::AtLeastOnce,
        crate::record::Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_host_port_and_login_and_shows_no_password() {
        let target = Target::parse("mqtt://meter:secret@broker.plant", None).unwrap();
        assert_eq!((target.host.as_str(), target.port), ("broker.plant", 1883));
        assert_eq!(target.login, Some(("meter".to_owned(), "secret".to_owned())));
        assert_eq!(target.url_shown, "mqtt://broker.plant:1883");
        assert_eq!(Target::parse("mqtt://[::1]:1884", None).unwrap().host, "::1");
    }

    #[test]
    fn a_wrong_url_says_what_is_wrong() {
        for url in ["localhost:1883", "http://host", "mqtt://", "", "mqtt:///path"] {
            let error = Target::parse(url, None).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("mqtt://host:1883"), "{url}: {error}");
        }
    }

    #[test]
    fn every_device_is_on_exactly_one_connection() {
        let target = Target::parse("mqtt://localhost", None).unwrap();
        let options = FleetOptions {
            target,
            devices: 43,
            rate: None,
            qos: crate::record::Qos::AtLeastOnce,
            count: None,
            topic: "plant/sim/{device}/telemetry".to_owned(),
            prefix: "sim".to_owned(),
            seed: 1,
            session: "test".to_owned(),
        };
        let mut seen: Vec<usize> = (0..options.connections()).flat_map(|lane| options.device_indices(lane)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..43).collect::<Vec<_>>());
        assert!(options.device_indices(3).enumerate().all(|(slot, index)| options.device_index(3, slot) == index));
    }
}
