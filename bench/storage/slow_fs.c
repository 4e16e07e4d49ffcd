/* A read-only view of a folder in which each read request takes a given time, as on a network file system.
 *
 *   slow_fs FOLDER MICROSECONDS MOUNT_POINT
 *
 * Requests wait independently of each other, up to 256 at once. The file .stats in the view has the number of read
 * requests and of bytes. The kernel keeps what was read in memory, as it does for NFS, and reads ahead by 128 kB.
 * The program ends when the view is unmounted, or at SIGTERM, which unmounts it. bench/storage/slow_fs.py compiles it.
 */
#define FUSE_USE_VERSION 312
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST_REQUESTS = 256, COUNTS_BYTES = 64 };

static const char counts_path[] = "/.stats";
static int folder;              /* descriptor of the folder that is shown */
static struct timespec latency; /* of each read request */
static atomic_llong requests, bytes;

/* A path in the view as openat takes it: relative to the folder. */
static const char *inside(const char *path) { return path[1] ? path + 1 : "."; }

static int is_counts(const char *path) { return strcmp(path, counts_path) == 0; }

static int get_attributes(const char *path, struct stat *found, struct fuse_file_info *file) {
  (void)file;
  if (is_counts(path)) {
    *found = (struct stat){.st_mode = S_IFREG | 0444, .st_nlink = 1, .st_size = COUNTS_BYTES};
    return 0;
  }
  return fstatat(folder, inside(path), found, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int list_folder(const char *path, void *buffer, fuse_fill_dir_t add, off_t offset, struct fuse_file_info *file,
                       enum fuse_readdir_flags flags) {
  (void)offset, (void)file, (void)flags;
  int descriptor = openat(folder, inside(path), O_RDONLY | O_DIRECTORY);
  DIR *entries = descriptor < 0 ? NULL : fdopendir(descriptor);
  if (!entries) return -errno;
  struct dirent *entry;
  while ((entry = readdir(entries))) add(buffer, entry->d_name, NULL, 0, 0);
  closedir(entries);
  return 0;
}

static int open_file(const char *path, struct fuse_file_info *file) {
  if (is_counts(path)) {
    file->direct_io = 1; /* read again each time */
    return 0;
  }
  if ((file->flags & O_ACCMODE) != O_RDONLY) return -EROFS;
  int descriptor = openat(folder, inside(path), O_RDONLY);
  if (descriptor < 0) return -errno;
  file->fh = (uint64_t)descriptor;
  file->keep_cache = 1;
  return 0;
}

static int read_counts(char *buffer, size_t size, off_t offset) {
  char text[COUNTS_BYTES];
  int length = snprintf(text, sizeof text, "%lld requests %lld bytes\n", (long long)requests, (long long)bytes);
  if (offset >= length) return 0;
  if (size > (size_t)(length - offset)) size = (size_t)(length - offset);
  memcpy(buffer, text + offset, size);
  return (int)size;
}

static int read_file(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *file) {
  if (is_counts(path)) return read_counts(buffer, size, offset);
  nanosleep(&latency, NULL);
  ssize_t count = pread((int)file->fh, buffer, size, offset);
  if (count < 0) return -errno;
  requests++;
  bytes += count;
  return (int)count;
}

static int close_file(const char *path, struct fuse_file_info *file) {
  if (!is_counts(path)) close((int)file->fh);
  return 0;
}

static void *start(struct fuse_conn_info *connection, struct fuse_config *config) {
  connection->max_background = connection->congestion_threshold = MOST_REQUESTS / 2;
  config->kernel_cache = 1;
  config->attr_timeout = config->entry_timeout = 60;
  return NULL;
}

static const struct fuse_operations operations = {
    .init = start,
    .getattr = get_attributes,
    .readdir = list_folder,
    .open = open_file,
    .read = read_file,
    .release = close_file,
};

static int serve(struct fuse *view) {
  struct fuse_loop_config *config = fuse_loop_cfg_create();
  fuse_loop_cfg_set_max_threads(config, MOST_REQUESTS); /* a request waits in a thread of its own */
  fuse_loop_cfg_set_idle_threads(config, MOST_REQUESTS);
  int code = fuse_loop_mt(view, config);
  fuse_loop_cfg_destroy(config);
  return code;
}

int main(int count, char **words) {
  if (count != 4) {
    fprintf(stderr, "usage: slow_fs FOLDER MICROSECONDS MOUNT_POINT\n");
    return 2;
  }
  long microseconds = atol(words[2]);
  latency = (struct timespec){microseconds / 1000000, microseconds % 1000000 * 1000};
  folder = open(words[1], O_RDONLY | O_DIRECTORY);
  if (folder < 0) {
    perror(words[1]);
    return 1;
  }
  char *options[] = {words[0], "-oro,fsname=slow_fs"};
  struct fuse_args arguments = FUSE_ARGS_INIT(2, options);
  struct fuse *view = fuse_new(&arguments, &operations, sizeof operations, NULL);
  if (!view || fuse_mount(view, words[3])) return 1;
  fuse_set_signal_handlers(fuse_get_session(view));
  int code = serve(view);
  fuse_unmount(view);
  fuse_destroy(view);
  return code != 0;
}
