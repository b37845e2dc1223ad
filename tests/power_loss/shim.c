/* Records what a process does to one directory, for the replay of power cuts (main.rs). Loaded with LD_PRELOAD.
 *
 * Every change below TEST_SHIM_ROOT is written to TEST_SHIM_JOURNAL, with its data, in the order in which it happened:
 * operation first, record second, both under one lock. A sync is two records, for it covers only what was recorded
 * before it began. Writes to the file TEST_SHIM_MARKS become records themselves: what the process says of itself.
 * What this file does not know how to record is recorded as an escape, and the replay refuses such a journal. Calls that
 * go round the C library are found by the replay too: it compares what it was told with what is on disk at the end.
 *
 * TEST_SHIM_SKIP=fdatasync     swallows every fdatasync: neither done nor recorded
 * TEST_SHIM_SKIP=opening       swallows fsync of sled's `conf` and of the directories of generations
 * TEST_SHIM_FULL=after:count:period  from the write `after` on, the first `count` of every `period` writes find no space
 *
 * A record: type u8, a u64, b u64, c u64, length u32, bytes; little-endian (journal.rs).
 */
#define _GNU_SOURCE
#define _LARGEFILE64_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    BASE_DIRECTORY = 1, BASE_FILE = 2, BASE_DATA = 3, BASE_END = 4,
    CREATE = 10, WRITE = 11, TRUNCATE = 12, RENAME = 13, UNLINK = 14, LINK = 15,
    SYNC_BEGIN = 20, SYNC_END = 21,
    MARK = 30, ESCAPE = 40,
};
enum { FSYNC = 0, FDATASYNC = 1, RANGE = 2 };

static char root[PATH_MAX], marks[PATH_MAX];
static size_t root_length;
static int journal = -1, skip_fdatasync, skip_opening;
static unsigned long full_after, full_count, full_period, writes;
static uint64_t syncs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The function of the C library that this file stands before. */
#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

static void die(const char *what) {
    fprintf(stderr, "shim: %s: %s\n", what, strerror(errno));
    abort();
}

static void put_all(const void *bytes, size_t left) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "write");
    const char *at = bytes;
    while (left) {
        ssize_t n = real(journal, at, left);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) die("cannot write the journal");
        at += n;
        left -= n;
    }
}

/* A process that has gone wild shall not fill the memory of the machine. */
#define JOURNAL_BYTES_MAX (1ull << 30)

static void record(uint8_t type, uint64_t a, uint64_t b, uint64_t c, const void *bytes, uint32_t length) {
    int saved = errno;
    unsigned char head[29];
    head[0] = type;
    memcpy(head + 1, &a, 8);
    memcpy(head + 9, &b, 8);
    memcpy(head + 17, &c, 8);
    memcpy(head + 25, &length, 4);
    static uint64_t recorded;
    recorded += sizeof head + length;
    if (recorded > JOURNAL_BYTES_MAX) {
        errno = EFBIG;
        die("this session writes without end");
    }
    put_all(head, sizeof head);
    put_all(bytes, length);
    errno = saved;
}

static void escape(const char *what) {
    if (journal < 0) return;
    pthread_mutex_lock(&lock);
    record(ESCAPE, 0, 0, 0, what, strlen(what));
    pthread_mutex_unlock(&lock);
}

static int below_root(const char *path) {
    return journal >= 0 && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

/* Absolute form of a path, as the calls ending in `at` take it. */
static int absolute(int directory, const char *path, char *out) {
    size_t at = 0;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
        ssize_t n = readlink(link, out, PATH_MAX - 1);
        if (n < 0) return 0;
        at = n;
        out[at++] = '/';
    }
    if (at + strlen(path) >= PATH_MAX) return 0;
    strcpy(out + at, path);
    size_t end = strlen(out);
    while (end > 1 && out[end - 1] == '/') out[--end] = 0;
    if (!below_root(out)) return 0;
    if (strstr(out, "/../") || strstr(out, "/./")) escape("a path with dots");
    return 1;
}

/* Where an open file of the watched directory stands; 0: elsewhere. */
static int watched(int fd, char *out) {
    char link[64];
    if (journal < 0 || fd < 0 || fd == journal) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    if (n <= 0) return 0;
    out[n] = 0;
    return below_root(out);
}

static uint64_t inode(int fd) {
    struct stat64 st;
    if (fstat64(fd, &st)) die("fstat");
    return st.st_ino;
}

static uint64_t inode_at(const char *path, int *is_directory) {
    struct stat64 st;
    if (lstat64(path, &st)) return 0;
    if (is_directory) *is_directory = S_ISDIR(st.st_mode);
    return st.st_ino;
}

static const char *name_of(const char *path) { return strrchr(path, '/') + 1; }

static uint64_t parent_of(const char *path) {
    char parent[PATH_MAX];
    strcpy(parent, path);
    *strrchr(parent, '/') = 0;
    uint64_t found = inode_at(parent, NULL);
    return found;
}

static void record_name(uint8_t type, const char *path, uint64_t ino, int is_directory) {
    record(type, parent_of(path), ino, is_directory, name_of(path), strlen(name_of(path)));
}

/* Whether this write finds no space. Under the lock. */
static int is_full(void) {
    if (!full_period) return 0;
    unsigned long at = writes;
    return at >= full_after && (at - full_after) % full_period < full_count;
}

static int write_fails(size_t *length) {
    writes++;
    if (!is_full()) return 0;
    /* The first one that does not fit writes what does. */
    if ((writes - full_after) % full_period == 0 && *length > 1) {
        *length /= 2;
        return 0;
    }
    errno = ENOSPC;
    return 1;
}

static int create_fails(void) {
    if (!is_full()) return 0;
    writes++;
    errno = ENOSPC;
    return 1;
}

static void add_base(const char *path) {
    DIR *directory = opendir(path);
    if (!directory) die("opendir");
    uint64_t own = inode_at(path, NULL);
    struct dirent64 *entry;
    while ((entry = readdir64(directory))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char child[PATH_MAX];
        if ((size_t)snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= sizeof child) die("a long path");
        int is_directory = 0;
        uint64_t ino = inode_at(child, &is_directory);
        record(is_directory ? BASE_DIRECTORY : BASE_FILE, own, ino, 0, entry->d_name, strlen(entry->d_name));
        if (is_directory) {
            add_base(child);
            continue;
        }
        int fd = open64(child, O_RDONLY | O_CLOEXEC);
        if (fd < 0) die("open");
        static char chunk[1 << 18];
        uint64_t at = 0;
        ssize_t n;
        while ((n = pread64(fd, chunk, sizeof chunk, at)) > 0) {
            record(BASE_DATA, ino, at, 0, chunk, n);
            at += n;
        }
        close(fd);
    }
    closedir(directory);
}

__attribute__((constructor)) static void begin(void) {
    const char *to = getenv("TEST_SHIM_JOURNAL"), *below = getenv("TEST_SHIM_ROOT"), *said = getenv("TEST_SHIM_MARKS");
    if (!to || !below || !said) return;
    if (!realpath(below, root)) die("TEST_SHIM_ROOT");
    root_length = strlen(root);
    strncpy(marks, said, sizeof marks - 1);
    const char *skip = getenv("TEST_SHIM_SKIP"), *full = getenv("TEST_SHIM_FULL");
    skip_fdatasync = skip && !strcmp(skip, "fdatasync");
    skip_opening = skip && !strcmp(skip, "opening");
    if (full && sscanf(full, "%lu:%lu:%lu", &full_after, &full_count, &full_period) != 3) die("TEST_SHIM_FULL");
    int fd = open64(to, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) die("TEST_SHIM_JOURNAL");
    journal = fcntl(fd, F_DUPFD_CLOEXEC, 200);
    close(fd);
    record(BASE_DIRECTORY, 0, inode_at(root, NULL), 0, "", 0);
    add_base(root);
    record(BASE_END, 0, 0, 0, "", 0);
}

/* ---- opening and making ------------------------------------------------------------------------------------------ */

typedef int (*open_at)(int, const char *, int, ...);

static int do_open(open_at real, int directory, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    if (!absolute(directory, path, full) || !(flags & (O_CREAT | O_TRUNC))) return real(directory, path, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE) escape("O_TMPFILE");
    pthread_mutex_lock(&lock);
    uint64_t before = inode_at(full, NULL);
    int fd = -1;
    if (before || !create_fails()) fd = real(directory, path, flags, mode);
    if (fd >= 0 && !before) record_name(CREATE, full, inode(fd), 0);
    else if (fd >= 0 && (flags & O_TRUNC)) record(TRUNCATE, before, 0, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }

int openat(int directory, const char *path, int flags, ...) {
    REAL(openat);
    MODE;
    return do_open(real, directory, path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...) {
    REAL(openat64);
    MODE;
    return do_open(real, directory, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    MODE;
    return openat(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE;
    return openat64(AT_FDCWD, path, flags, mode);
}

int creat(const char *path, mode_t mode) { return openat(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return openat64(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int mkdirat(int directory, const char *path, mode_t mode) {
    REAL(mkdirat);
    char full[PATH_MAX];
    if (!absolute(directory, path, full)) return real(directory, path, mode);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (inode_at(full, NULL) || !create_fails()) result = real(directory, path, mode);
    if (!result) record_name(CREATE, full, inode_at(full, NULL), 1);
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* ---- names ------------------------------------------------------------------------------------------------------- */

int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    REAL(renameat2);
    char source[PATH_MAX], target[PATH_MAX];
    int from_in = absolute(from_directory, from, source), to_in = absolute(to_directory, to, target);
    if (!from_in && !to_in) return real(from_directory, from, to_directory, to, flags);
    if (!from_in || !to_in || flags) escape("a rename across the border, or with flags");
    pthread_mutex_lock(&lock);
    uint64_t ino = inode_at(source, NULL), from_parent = parent_of(source), to_parent = parent_of(target);
    int result = real(from_directory, from, to_directory, to, flags);
    if (!result) {
        char names[2 * PATH_MAX];
        int n = snprintf(names, sizeof names, "%s/%s", name_of(source), name_of(target));
        record(RENAME, from_parent, to_parent, ino, names, n);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int renameat(int from_directory, const char *from, int to_directory, const char *to) {
    return renameat2(from_directory, from, to_directory, to, 0);
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int directory, const char *path, int flags) {
    REAL(unlinkat);
    char full[PATH_MAX];
    if (!absolute(directory, path, full)) return real(directory, path, flags);
    pthread_mutex_lock(&lock);
    int is_directory = 0;
    uint64_t ino = inode_at(full, &is_directory);
    int result = real(directory, path, flags);
    if (!result) record_name(UNLINK, full, ino, is_directory);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int remove(const char *path) {
    int is_directory = 0;
    inode_at(path, &is_directory);
    return is_directory ? rmdir(path) : unlink(path);
}

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags) {
    REAL(linkat);
    char target[PATH_MAX];
    if (!absolute(to_directory, to, target)) return real(from_directory, from, to_directory, to, flags);
    pthread_mutex_lock(&lock);
    int result = real(from_directory, from, to_directory, to, flags);
    if (!result) record_name(LINK, target, inode_at(target, NULL), 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* ---- contents ---------------------------------------------------------------------------------------------------- */

static int is_mark(int fd) {
    char path[PATH_MAX], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = journal < 0 ? -1 : readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return !strcmp(path, marks);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    char path[PATH_MAX];
    if (is_mark(fd)) {
        pthread_mutex_lock(&lock);
        record(MARK, 0, 0, 0, bytes, length);
        pthread_mutex_unlock(&lock);
        return length;
    }
    if (!watched(fd, path)) return real(fd, bytes, length);
    pthread_mutex_lock(&lock);
    ssize_t n = write_fails(&length) ? -1 : real(fd, bytes, length);
    if (n > 0) record(WRITE, inode(fd), lseek64(fd, 0, SEEK_CUR) - n, 0, bytes, n);
    pthread_mutex_unlock(&lock);
    return n;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    REAL(pwrite64);
    char path[PATH_MAX];
    if (!watched(fd, path)) return real(fd, bytes, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t n = write_fails(&length) ? -1 : real(fd, bytes, length, offset);
    if (n > 0) record(WRITE, inode(fd), offset, 0, bytes, n);
    pthread_mutex_unlock(&lock);
    return n;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

/* What is written in pieces goes out piece by piece: a short write, as the call may answer anyway. */
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    REAL(writev);
    char path[PATH_MAX];
    if (!watched(fd, path) && !is_mark(fd)) return real(fd, pieces, count);
    for (int at = 0; at < count; at++)
        if (pieces[at].iov_len) return write(fd, pieces[at].iov_base, pieces[at].iov_len);
    return 0;
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t offset) {
    REAL(pwritev64);
    char path[PATH_MAX];
    if (!watched(fd, path)) return real(fd, pieces, count, offset);
    for (int at = 0; at < count; at++)
        if (pieces[at].iov_len) return pwrite64(fd, pieces[at].iov_base, pieces[at].iov_len, offset);
    return 0;
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset) {
    return pwritev64(fd, pieces, count, offset);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    char path[PATH_MAX];
    if (!watched(fd, path)) return real(fd, length);
    pthread_mutex_lock(&lock);
    int result = real(fd, length);
    if (!result) record(TRUNCATE, inode(fd), length, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

/* ---- syncs ------------------------------------------------------------------------------------------------------- */

static uint64_t sync_begins(int fd, int kind, uint64_t from, uint64_t length) {
    uint64_t span[2] = {from, length};
    pthread_mutex_lock(&lock);
    uint64_t id = syncs++;
    record(SYNC_BEGIN, inode(fd), id, kind, span, sizeof span);
    pthread_mutex_unlock(&lock);
    return id;
}

static void sync_ends(uint64_t id, int result) {
    pthread_mutex_lock(&lock);
    record(SYNC_END, 0, id, result == 0, "", 0);
    pthread_mutex_unlock(&lock);
}

int fsync(int fd) {
    REAL(fsync);
    char path[PATH_MAX];
    if (!watched(fd, path)) return real(fd);
    const char *name = name_of(path);
    if (skip_opening && (!strcmp(name, "conf") || (name[0] == 'g' && name[1] >= '0' && name[1] <= '9' && !strchr(name, '.'))))
        return 0;
    uint64_t id = sync_begins(fd, FSYNC, 0, 0);
    int result = real(fd);
    sync_ends(id, result);
    return result;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    char path[PATH_MAX];
    if (!watched(fd, path)) return real(fd);
    if (skip_fdatasync) return 0;
    uint64_t id = sync_begins(fd, FDATASYNC, 0, 0);
    int result = real(fd);
    sync_ends(id, result);
    return result;
}

int sync_file_range(int fd, off64_t from, off64_t length, unsigned flags) {
    REAL(sync_file_range);
    char path[PATH_MAX];
    const unsigned waits = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (!watched(fd, path) || (flags & waits) != waits) return real(fd, from, length, flags);
    uint64_t id = sync_begins(fd, RANGE, from, length);
    int result = real(fd, from, length, flags);
    sync_ends(id, result);
    return result;
}

/* ---- what nobody here is known to call --------------------------------------------------------------------------- */

#define ESCAPES(type, name, parameters, arguments, fd) \
    type name parameters { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (watched(fd, path)) escape(#name); \
        return real arguments; \
    }

ESCAPES(int, fallocate, (int fd, int mode, off_t from, off_t length), (fd, mode, from, length), fd)
ESCAPES(int, fallocate64, (int fd, int mode, off64_t from, off64_t length), (fd, mode, from, length), fd)
ESCAPES(int, posix_fallocate, (int fd, off_t from, off_t length), (fd, from, length), fd)
ESCAPES(int, posix_fallocate64, (int fd, off64_t from, off64_t length), (fd, from, length), fd)
ESCAPES(ssize_t, pwritev2, (int fd, const struct iovec *v, int n, off_t at, int flags), (fd, v, n, at, flags), fd)
ESCAPES(ssize_t, copy_file_range, (int in, off64_t *i, int fd, off64_t *o, size_t n, unsigned flags),
        (in, i, fd, o, n, flags), fd)
ESCAPES(ssize_t, sendfile, (int fd, int in, off_t *at, size_t n), (fd, in, at, n), fd)
ESCAPES(ssize_t, sendfile64, (int fd, int in, off64_t *at, size_t n), (fd, in, at, n), fd)
ESCAPES(ssize_t, splice, (int in, off64_t *i, int fd, off64_t *o, size_t n, unsigned flags), (in, i, fd, o, n, flags), fd)

#define ESCAPES_PATH(type, name, parameters, arguments, directory, path) \
    type name parameters { \
        REAL(name); \
        char full[PATH_MAX]; \
        if (absolute(directory, path, full)) escape(#name); \
        return real arguments; \
    }

ESCAPES_PATH(int, truncate, (const char *path, off_t length), (path, length), AT_FDCWD, path)
ESCAPES_PATH(int, truncate64, (const char *path, off64_t length), (path, length), AT_FDCWD, path)
ESCAPES_PATH(int, symlink, (const char *to, const char *path), (to, path), AT_FDCWD, path)
ESCAPES_PATH(int, symlinkat, (const char *to, int fd, const char *path), (to, fd, path), fd, path)
ESCAPES_PATH(int, mknod, (const char *path, mode_t mode, dev_t device), (path, mode, device), AT_FDCWD, path)
ESCAPES_PATH(int, mknodat, (int fd, const char *path, mode_t mode, dev_t device), (fd, path, mode, device), fd, path)

static void check_stream(const char *path, const char *mode) {
    char full[PATH_MAX];
    if (strpbrk(mode, "wa+") && absolute(AT_FDCWD, path, full)) escape("fopen");
}

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    check_stream(path, mode);
    return real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    check_stream(path, mode);
    return real(path, mode);
}

static void check_map(int protection, int flags, int fd) {
    char path[PATH_MAX];
    if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && watched(fd, path)) escape("mmap");
}

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    REAL(mmap);
    if (fd >= 0) check_map(protection, flags, fd);
    return real(at, length, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    if (fd >= 0) check_map(protection, flags, fd);
    return real(at, length, protection, flags, fd, offset);
}

long syscall(long number, ...) {
    REAL(syscall);
    long a[6];
    va_list list;
    va_start(list, number);
    for (int at = 0; at < 6; at++) a[at] = va_arg(list, long);
    va_end(list);
    switch (number) {
    case SYS_write: case SYS_writev: case SYS_pwrite64: case SYS_pwritev: case SYS_pwritev2: case SYS_ftruncate:
    case SYS_fallocate: case SYS_renameat2: case SYS_unlinkat: case SYS_mkdirat: case SYS_linkat: case SYS_symlinkat:
    case SYS_copy_file_range: case SYS_sendfile: case SYS_splice: case SYS_fsync: case SYS_fdatasync:
    case SYS_io_uring_setup:
        escape("syscall()");
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
