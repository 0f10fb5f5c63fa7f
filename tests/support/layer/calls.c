/* Stands between a program and the C library, and lets the N-th call that changes a folder fail, or be the last.

   LD_PRELOAD names it; tests/soak/undertow.py compiles it and says what the variables mean. Calls that name a file
   outside DSCTL_TEST_WITHIN, standard output and pipes are not counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { GO, SHORT, FAIL };
static atomic_int counted;
static atomic_int full;

static const char *said(const char *name) { return getenv(name); }

static void named(int folder, const char *path, char *out) {
    char link[64], base[PATH_MAX];
    if (path && path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return; }
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    base[length > 0 ? length : 0] = 0;
    if (path) snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
    else snprintf(out, PATH_MAX, "%s", base);
}

static void note(int number, const char *call, const char *path) {
    char line[PATH_MAX + 64];
    const char *log = said("DSCTL_TEST_LOG");
    if (!log) return;
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    ssize_t (*put)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    int to = real(log, O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (to < 0) return;
    int length = snprintf(line, sizeof line, "%d %s %s\n", number, call, path);
    if (put(to, line, length) < 0) { }
    close(to);
}

/* What becomes of a call: it goes on, it is cut short, or it fails with errno set. `takes`: whether it needs room. */
static int met(const char *call, int folder, const char *path, int takes) {
    char whole[PATH_MAX];
    const char *within = said("DSCTL_TEST_WITHIN"), *what = said("DSCTL_TEST_WHAT");
    int before = errno;
    if (!within) return GO;
    named(folder, path, whole);
    errno = before;
    if (strncmp(whole, within, strlen(within))) return GO;
    int number = atomic_fetch_add(&counted, 1) + 1;
    int wanted = said("DSCTL_TEST_CALL") ? atoi(said("DSCTL_TEST_CALL")) : 0;
    note(number, call, whole);
    errno = before;
    if (!what || !wanted || number < wanted) return GO;
    if (!strcmp(what, "full")) {
        if (takes == 2 && number == wanted) { atomic_store(&full, 1); return SHORT; }
        if (takes) { errno = ENOSPC; return FAIL; }
        return GO;
    }
    if (!strcmp(what, "broken")) { errno = EIO; return FAIL; }
    if (!strcmp(what, "torn") && number == wanted + 40) kill(getpid(), SIGKILL);
    if (number > wanted) return GO;
    if (!strcmp(what, "kill")) kill(getpid(), SIGKILL);
    if (!strcmp(what, "kill-all")) kill(0, SIGKILL);
    if (!strcmp(what, "short") || !strcmp(what, "torn")) return takes == 2 ? SHORT : GO;
    errno = atoi(what);
    return errno ? FAIL : GO;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

ssize_t write(int to, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int how = met("write", to, NULL, 2);
    return how == FAIL ? -1 : real(to, data, how == SHORT && size > 1 ? size / 2 : size);
}

static ssize_t at(int to, const void *data, size_t size, off_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    int how = met("pwrite", to, NULL, 2);
    return how == FAIL ? -1 : real(to, data, how == SHORT && size > 1 ? size / 2 : size, offset);
}
ssize_t pwrite(int to, const void *data, size_t size, off_t offset) { return at(to, data, size, offset); }
ssize_t pwrite64(int to, const void *data, size_t size, off_t offset) { return at(to, data, size, offset); }

int fsync(int file) {
    REAL(int, "fsync", int);
    return met("fsync", file, NULL, 0) == FAIL ? -1 : real(file);
}
int fdatasync(int file) {
    REAL(int, "fdatasync", int);
    return met("fdatasync", file, NULL, 0) == FAIL ? -1 : real(file);
}

static int grown(int file, off_t size) {
    REAL(int, "ftruncate64", int, off_t);
    return met("ftruncate", file, NULL, 1) == FAIL ? -1 : real(file, size);
}
int ftruncate(int file, off_t size) { return grown(file, size); }
int ftruncate64(int file, off_t size) { return grown(file, size); }

static int cut(const char *path, off_t size) {
    REAL(int, "truncate64", const char *, off_t);
    return met("truncate", AT_FDCWD, path, 1) == FAIL ? -1 : real(path, size);
}
int truncate(const char *path, off_t size) { return cut(path, size); }
int truncate64(const char *path, off_t size) { return cut(path, size); }

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return met("rename", AT_FDCWD, to, 0) == FAIL ? -1 : real(from, to);
}
int renameat(int one, const char *from, int two, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return met("rename", two, to, 0) == FAIL ? -1 : real(one, from, two, to);
}
int renameat2(int one, const char *from, int two, const char *to, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    return met("rename", two, to, 0) == FAIL ? -1 : real(one, from, two, to, flags);
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    return met("link", AT_FDCWD, to, 1) == FAIL ? -1 : real(from, to);
}
int linkat(int one, const char *from, int two, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    return met("link", two, to, 1) == FAIL ? -1 : real(one, from, two, to, flags);
}
int symlink(const char *from, const char *to) {
    REAL(int, "symlink", const char *, const char *);
    return met("symlink", AT_FDCWD, to, 1) == FAIL ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return met("mkdir", AT_FDCWD, path, 1) == FAIL ? -1 : real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    return met("mkdir", folder, path, 1) == FAIL ? -1 : real(folder, path, mode);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return met("unlink", AT_FDCWD, path, 0) == FAIL ? -1 : real(path);
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    return met(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path, 0) == FAIL ? -1 : real(folder, path, flags);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    return met("rmdir", AT_FDCWD, path, 0) == FAIL ? -1 : real(path);
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) \
    { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
static int opened(int folder, const char *path, int flags, mode_t mode) {
    REAL(int, "openat64", int, const char *, int, ...);
    int makes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
    if ((makes || flags & O_DIRECTORY) && met(makes ? "open" : "open-folder", folder, path, !!(flags & O_CREAT)) == FAIL)
        return -1;
    return real(folder, path, flags, mode);
}
int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }
