//! What `verify` finds.

use super::*;

#[test]
fn verify_names_every_kind_of_damage_and_changes_nothing() {
    let whole = tempfile::tempdir().unwrap();
    filled(whole.path(), 4500);
    let generations: Vec<_> =
        databases(whole.path()).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let hurt = |what: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp").arg("-a").arg(whole.path().join(".")).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        what(&dir.path().join("outbox"));
        let before = tree(dir.path());
        let mut look = Look::at_files(dir.path(), None).unwrap();
        let (found, verified) = findings(&mut look);
        assert!(tree(dir.path()) == before, "something changed");
        let damage = found.iter().filter(|finding| finding.level == Level::Damage).count();
        assert_eq!(damage as u64, verified.damage);
        found
    };
    let names = |found: &[Finding], level: Level| {
        found.iter().filter(|one| one.level == level).map(|one| one.file.clone()).collect::<Vec<_>>()
    };
    assert_eq!(hurt(&|_| {}), []);
    let (first, second) = (&generations[0], &generations[1]);
    let newest = generations.last().unwrap();

    let found = hurt(&|outbox| fs::remove_dir_all(outbox.join(second)).unwrap());
    assert_eq!(names(&found, Level::Damage), [generations[2].clone()], "{found:?}");
    assert!(found.iter().any(|one| one.from.is_some() && one.what.contains("no note says why")), "{found:?}");

    for slots in ["pos", "state"] {
        let found = hurt(&|outbox| {
            let file = fs::OpenOptions::new().write(true).open(outbox.join(slots)).unwrap();
            file.write_all_at(b"xxxx", 20).unwrap();
            file.write_all_at(b"xxxx", 4096 + 20).unwrap();
        });
        assert!(names(&found, Level::Damage).contains(&slots.to_owned()), "{slots}: {found:?}");
        let found = hurt(&|outbox| {
            let file = fs::OpenOptions::new().write(true).open(outbox.join(slots)).unwrap();
            file.write_all_at(b"xxxx", 20).unwrap();
        });
        assert_eq!(names(&found, Level::Damage), Vec::<String>::new(), "{found:?}");
    }
    let found = hurt(&|outbox| fs::remove_file(outbox.join(format!("{first}.ok"))).unwrap());
    assert_eq!(names(&found, Level::Remark), [format!("{first}.ok")], "{found:?}");
    let found = hurt(&|outbox| fs::write(outbox.join(format!("{first}.end")), "torn").unwrap());
    assert_eq!(names(&found, Level::Remark), [format!("{first}.end")], "{found:?}");
    let found = hurt(&|outbox| {
        let path = outbox.join(format!("{first}.end"));
        let mut summary = summary::Summary::read(&path).unwrap();
        *summary.sources.get_mut("plant").unwrap() += 1;
        summary.write(&path).unwrap();
    });
    assert_eq!(names(&found, Level::Remark), [format!("{first}.end")], "{found:?}");

    // The file of a generation, hurt in the middle and at its end.
    for name in [first, second, newest] {
        let found = hurt(&|outbox| {
            let path = outbox.join(name).join("db");
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            file.write_all_at(&[0x5a; 700_000], len / 4).unwrap();
        });
        assert!(!names(&found, Level::Damage).is_empty(), "{name} {found:?}");
        let ranged = found.iter().any(|one| one.level == Level::Damage && one.file == *name && one.from.is_some());
        assert!(ranged || name == newest, "{name}: the range is named at its own generation: {found:?}");
    }
    let found = hurt(&|outbox| {
        let directory = directory::Directory::new(outbox.to_owned());
        fs::remove_dir_all(directory.path().join(newest)).unwrap();
    });
    assert!(names(&found, Level::Damage).contains(&"pos".to_owned()), "what was acknowledged is missing: {found:?}");
}
