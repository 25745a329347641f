// Runs work in a forked child, on objects that its parent made.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

namespace mobilemoe::test {

// 0 if `work` returns true in a forked child, 1 if it returns false, else the signal that ended the child: SIGALRM
// after 20 s.
template <class Work>
int status_of_child(const Work& work) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    try {
      _exit(work() ? 0 : 1);
    } catch (...) {
      _exit(1);
    }
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) + 128;
}

}  // namespace mobilemoe::test
