//! Passwords: read anew at each connect, from a file or a systemd credential, never logged.

use std::path::{Path, PathBuf};

/// Longest password, bytes.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// Whether the settings name one password at most, and name it well.
pub(crate) fn check(file: Option<&Path>, credential: Option<&str>) -> Result<(), String> {
    match (file, credential) {
        (Some(_), Some(_)) => Err("password_credential: and password_file exclude each other".to_owned()),
        (None, Some(name)) if name.is_empty() || name.contains('/') || name == "." || name == ".." => {
            Err(format!("password_credential: {name:?} is no name of a systemd credential"))
        }
        _ => Ok(()),
    }
}

/// Where the password is, if there is one. A credential lies in `$CREDENTIALS_DIRECTORY` (systemd.exec(5)), which is known
/// to the unit only: that it is missing is no mistake of the settings.
pub(crate) fn password_path(file: Option<&Path>, credential: Option<&str>) -> Result<Option<PathBuf>, String> {
    check(file, credential)?;
    match (file, credential) {
        (Some(file), _) => Ok(Some(file.to_owned())),
        (None, None) => Ok(None),
        (None, Some(name)) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                format!(
                    "password_credential: $CREDENTIALS_DIRECTORY is not set; add LoadCredential={name}:/path to the unit, or use password_file"
                )
            })?;
            Ok(Some(PathBuf::from(directory).join(name)))
        }
    }
}

/// Reads a password; one line end at its end is not part of it.
pub(crate) fn read_password(path: &Path) -> Result<String, String> {
    let told = |what: &dyn std::fmt::Display| format!("cannot read the password in {}: {what}", path.display());
    let size = std::fs::metadata(path).map_err(|error| told(&error))?.len();
    if size > PASSWORD_BYTES_MAX {
        return Err(told(&format!("{size} bytes are too many")));
    }
    let bytes = std::fs::read(path).map_err(|error| told(&error))?;
    let text = String::from_utf8(bytes).map_err(|_| told(&"it is not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_cut_off_and_errors_do_not_show_the_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, " se cret \r\n").unwrap();
        assert_eq!(read_password(&path).unwrap(), " se cret ");
        std::fs::write(&path, b"hunter2\xff").unwrap();
        let error = read_password(&path).unwrap_err();
        assert!(error.contains("UTF-8") && !error.contains("hunter2"));
        assert!(read_password(&directory.path().join("absent")).unwrap_err().contains("absent"));
        assert!(check(None, Some("../x")).is_err());
        assert!(check(Some(&path), Some("x")).is_err());
        assert_eq!(check(None, Some("mqtt-password")), Ok(()));
        assert_eq!(password_path(None, None), Ok(None));
    }
}
