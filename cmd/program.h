/* SPDX-License-Identifier: Apache-2.0 */
/* A program that is to be run: where it is, and whether the library will have an effect on it. */
#ifndef CMD_PROGRAM_H
#define CMD_PROGRAM_H

#include "cmd/cmd.h"

/* The file that execvp would run for a name, into path; DONE, NOT_FOUND or CANNOT_RUN. */
enum status program_find(const char *name, char path[4096]);

enum effect {
  AFFECTED,
  PARTLY,     /* some of its memory does not come from malloc */
  UNAFFECTED, /* it would run as without the library */
  UNFIT,      /* it could not be loaded with the library */
};

/* Whether the library has an effect on the program at path. denied: MESH_UFFD_DENY, or NULL. Why not, and what can be
 * done, in one line each. */
enum effect program_effect(const char *path, const char *denied, char why[512], char mend[512]);

/* Whether it is on a list of programs to be left alone, by the name it is started by or by its file's. */
bool program_denied(const char *path, const char *real, const char *denied, char why[512]);

/* The library that belongs to this command: in the build tree it was built in, or installed. False: not there. */
bool library_find(char path[4096]);
/* Whether a file can be preloaded by this machine's programs; says why not. */
bool library_fits(const char *path, char why[512]);
/* LD_PRELOAD with the library first, in this process's environment. Ends the program if that cannot be. */
void library_preload(const char *path);

#endif
