//! mosquitto with a configuration of its own: one port of loopback, no limit on what it queues for a client that is away.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::{BrokerError, free_port, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// Debian keeps it where only root looks.
const PROGRAMS: [&str; 3] = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];

/// What kind of broker.
#[derive(Debug, Clone, Default)]
pub struct MosquittoOptions {
    /// Keep sessions and queues over an orderly restart.
    pub persistence: bool,
    /// User names and passwords; empty: anyone may connect.
    pub users: Vec<(String, String)>,
    /// TLS on a port of its own, beside the plain one.
    pub tls: Option<MosquittoTls>,
    /// Lines for its configuration file.
    pub settings: Vec<String>,
}

/// Files in PEM for [`MosquittoOptions::tls`]. Clients must show a certificate signed by `ca_file`.
#[derive(Debug, Clone)]
pub struct MosquittoTls {
    /// Authority that signs the clients.
    pub ca_file: PathBuf,
    /// The broker's certificate.
    pub cert_file: PathBuf,
    /// The broker's key.
    pub key_file: PathBuf,
}

/// A broker. Dropping it kills it; its directory stays with the caller.
#[derive(Debug)]
pub struct Mosquitto {
    dir: PathBuf,
    port: u16,
    tls_port: Option<u16>,
    program: PathBuf,
    process: Option<Process>,
}

impl Mosquitto {
    /// Starts a broker with its files in `dir` (made if missing) and waits until it listens.
    pub fn start(dir: &Path, options: &MosquittoOptions) -> Result<Self, BrokerError> {
        let mut broker = Self::prepare(dir, options)?;
        broker.start_again()?;
        Ok(broker)
    }

    /// Writes the files and takes the ports; nothing runs yet.
    pub fn prepare(dir: &Path, options: &MosquittoOptions) -> Result<Self, BrokerError> {
        let program = PROGRAMS.iter().map(PathBuf::from).find(|path| path.exists());
        let program = program.ok_or_else(|| BrokerError::Missing("mosquitto".to_owned()))?;
        std::fs::create_dir_all(dir).map_err(BrokerError::io(format!("making {}", dir.display())))?;
        let tls_port = options.tls.as_ref().map(|_| free_port()).transpose()?;
        let broker = Self { dir: dir.to_owned(), port: free_port()?, tls_port, program, process: None };
        if !options.users.is_empty() {
            write_passwords(&broker.dir.join("passwords"), &options.users)?;
        }
        let text = broker.settings(options);
        std::fs::write(broker.dir.join("mosquitto.conf"), text)
            .map_err(BrokerError::io(format!("the settings of mosquitto in {}", dir.display())))?;
        Ok(broker)
    }

    fn settings(&self, options: &MosquittoOptions) -> String {
        let dir = self.dir.display();
        // Started by root it would change to a user who may not write here.
        let mut text = String::from("user root\nlog_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\n");
        text.push_str("max_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\n");
        if options.persistence {
            let _ = writeln!(text, "persistence true\npersistence_location {dir}/\nautosave_interval 1800");
        }
        if options.users.is_empty() {
            text.push_str("allow_anonymous true\n");
        } else {
            let _ = writeln!(text, "allow_anonymous false\npassword_file {dir}/passwords");
        }
        let _ = writeln!(text, "listener {} 127.0.0.1", self.port);
        if let (Some(tls), Some(port)) = (&options.tls, self.tls_port) {
            let (ca, cert, key) = (tls.ca_file.display(), tls.cert_file.display(), tls.key_file.display());
            let _ = writeln!(text, "listener {port} 127.0.0.1\ncafile {ca}\ncertfile {cert}\nkeyfile {key}");
            text.push_str("require_certificate true\n");
        }
        for line in &options.settings {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// Its plain port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its TLS port, if it has one.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// `mqtt://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Starts it on the same port, with what it kept. It must not be running.
    pub fn start_again(&mut self) -> Result<(), BrokerError> {
        let config = self.dir.join("mosquitto.conf");
        let arguments = ["-c".into(), config.into_os_string()];
        let process = Process::start("mosquitto", &self.program, arguments, &[], &self.dir.join("log"))?;
        let process = self.process.insert(process);
        let mut ended = None;
        let up = wait_until(LIMIT, || {
            ended = process.ended();
            ended.is_some() || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
        match ended {
            Some(status) => Err(process.failed(format!("mosquitto ended while starting ({status})"))),
            None if up => Ok(()),
            None => Err(process.failed(format!("mosquitto did not listen within {} s", LIMIT.as_secs()))),
        }
    }

    /// SIGTERM, and waits for the orderly end: with persistence it writes its sessions down.
    pub fn stop(&mut self) -> Result<(), BrokerError> {
        self.process.take().map_or(Ok(()), |mut process| process.stop(LIMIT).map(drop))
    }

    /// SIGKILL: whatever it had not written down is lost.
    pub fn kill(&mut self) -> Result<(), BrokerError> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }
}

fn write_passwords(path: &Path, users: &[(String, String)]) -> Result<(), BrokerError> {
    let _ = std::fs::remove_file(path);
    for (number, (user, password)) in users.iter().enumerate() {
        let mut command = Command::new("mosquitto_passwd");
        command.args(if number == 0 { ["-c", "-b"].as_slice() } else { &["-b"] });
        let output = command.arg(path).arg(user).arg(password).output();
        let output = output.map_err(BrokerError::io("starting mosquitto_passwd (run `make setup`)"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(BrokerError::Refused(format!("mosquitto_passwd: {text}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_comes_back_on_its_port_after_a_stop_and_after_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let options = MosquittoOptions {
            persistence: true,
            users: vec![("one".to_owned(), "a".to_owned()), ("two".to_owned(), "b".to_owned())],
            ..MosquittoOptions::default()
        };
        let mut broker = Mosquitto::start(dir.path(), &options).unwrap();
        broker.stop().unwrap();
        broker.start_again().unwrap();
        broker.kill().unwrap();
        broker.start_again().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", broker.port())).is_ok());
    }

    #[test]
    fn a_setting_that_mosquitto_refuses_is_told_with_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let options = MosquittoOptions { settings: vec!["nonsense 1".to_owned()], ..MosquittoOptions::default() };
        let error = Mosquitto::start(dir.path(), &options).unwrap_err().to_string();
        assert!(error.contains("nonsense"), "{error}");
    }
}
