/* Two processes and POSIX locks on one file: who is held off, by whom, and for how long. Usage: locks FILE */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static int lock(int fd, int command, short type, off_t start, off_t length, struct flock *found)
{
	*found = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	return fcntl(fd, command, found);
}

int main(int argc, char **argv)
{
	struct flock found;
	int to_child[2], to_parent[2];
	char byte = 0;

	if (argc != 2 || pipe(to_child) || pipe(to_parent))
		return 2;
	int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0)
		return 1;
	if (fork() == 0) {
		fd = open(argv[1], O_RDWR);
		if (read(to_child[0], &byte, 1) != 1)
			return 1;
		if (lock(fd, F_SETLK, F_WRLCK, 0, 10, &found) < 0 && (errno == EAGAIN || errno == EACCES))
			puts("BUSY");
		if (lock(fd, F_SETLK, F_WRLCK, 10, 10, &found) == 0)
			puts("OTHER-PART");
		if (lock(fd, F_GETLK, F_WRLCK, 5, 1, &found) == 0 && found.l_type == F_WRLCK)
			printf("HOLDER %ld..%ld\n", (long)found.l_start, (long)(found.l_start + found.l_len - 1));
		fflush(stdout);
		if (write(to_parent[1], &byte, 1) != 1)
			return 1;
		if (lock(fd, F_SETLKW, F_WRLCK, 0, 10, &found) == 0)
			puts("GOT");
		fflush(stdout);
		_exit(0);
	}
	if (lock(fd, F_SETLK, F_WRLCK, 0, 10, &found) < 0)
		perror("F_SETLK");
	if (write(to_child[1], &byte, 1) != 1 || read(to_parent[0], &byte, 1) != 1)
		return 1;
	usleep(300000);
	lock(fd, F_SETLK, F_UNLCK, 0, 10, &found);
	wait(NULL);
	return 0;
}
