/* A server that reads its weights before it serves: listens on 8080 at once, reads the file it is told of, then answers. */
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
static char block[1 << 20];

static void leave(int signal) { (void)signal; _exit(0); }

int main(int count, char **words) {
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8080)};
	int door = socket(AF_INET, SOCK_STREAM, 0), yes = 1, file, caller;
	signal(SIGTERM, leave);
	signal(SIGPIPE, SIG_IGN);
	setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	/* A probe that comes early waits in the queue, and is answered the moment all is read. */
	if (bind(door, (struct sockaddr *)&here, sizeof here) || listen(door, 16))
		return 1;
	if (count > 1) {
		if ((file = open(words[1], O_RDONLY)) < 0)
			return 2;
		ssize_t got;
		while ((got = read(file, block, sizeof block)) > 0)
			;
		if (got < 0)
			return 3;
		close(file);
	}
	for (;;) {
		if ((caller = accept(door, NULL, NULL)) < 0)
			continue;
		if (read(caller, block, sizeof block) > 0)
			(void)!write(caller, answer, strlen(answer));
		shutdown(caller, SHUT_WR);
		close(caller);
	}
}
