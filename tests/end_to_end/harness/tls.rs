//! An authority, a broker's and a client's certificate, made by the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Certificates(PathBuf);

impl Certificates {
    pub fn make(dir: &Path) -> Self {
        let made = Self(dir.join("tls"));
        std::fs::create_dir_all(&made.0).unwrap();
        made.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-authority -keyout ca.key -out ca.pem");
        std::fs::write(made.0.join("extensions"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        for name in ["broker", "client"] {
            made.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            made.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
            ));
        }
        made
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output();
        let output = output.expect("openssl is there; run `make setup`");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `ca.pem`, `broker.pem`, `broker.key`, `client.pem`, `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}
