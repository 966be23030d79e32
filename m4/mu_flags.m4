dnl SPDX-License-Identifier: Apache-2.0

dnl MU_APPEND_FLAGS(VARIABLE, FLAGS)
dnl Appends to VARIABLE, and substitutes it, each of FLAGS that the compiler of the current language takes.
AC_DEFUN([MU_APPEND_FLAGS], [
AC_SUBST([$1])
for mu_flag in $2; do
  AS_VAR_PUSHDEF([mu_cache], [mu_cv_[]_AC_LANG_ABBREV[]_flag_$mu_flag])
  AC_CACHE_CHECK([whether $[]_AC_CC[] accepts $mu_flag], [mu_cache], [
    mu_saved_flags=$[]_AC_LANG_PREFIX[]FLAGS
    _AC_LANG_PREFIX[]FLAGS="$mu_saved_flags -Werror $mu_flag"
    AC_COMPILE_IFELSE([AC_LANG_PROGRAM([], [])], [AS_VAR_SET([mu_cache], [yes])], [AS_VAR_SET([mu_cache], [no])])
    _AC_LANG_PREFIX[]FLAGS=$mu_saved_flags])
  AS_VAR_IF([mu_cache], [yes], [$1="$$1 $mu_flag"])
  AS_VAR_POPDEF([mu_cache])
done
])

dnl MU_MODULE(PREFIX, MODULE, DEBIAN-PACKAGE, WITHOUT)
dnl Like PKG_CHECK_MODULES, but what is missing is only noted: MU_REPORT_MISSING names all of it at once. WITHOUT says
dnl what --without-MODULE means.
AC_DEFUN([MU_MODULE], [
AC_ARG_WITH([$2], [AS_HELP_STRING([--without-$2], [$4])])
AS_IF([test "x$AS_TR_SH([with_$2])" = xno], [mu_found_$1="no: $4"], [
PKG_CHECK_MODULES([$1], [$2], [mu_found_$1=`$PKG_CONFIG --modversion "$2" 2>/dev/null`], [
  mu_missing="$mu_missing
    $2 (Debian package $3, or --without-$2: $4)"
  mu_missing_packages="$mu_missing_packages $3"])])
])

AC_DEFUN([MU_REPORT_MISSING], [
AS_IF([test -z "$PKG_CONFIG"], [
  mu_missing="
    pkg-config (Debian package pkg-config); without it nothing below can be found$mu_missing"
  mu_missing_packages=" pkg-config$mu_missing_packages"])
AS_IF([test -n "$mu_missing"], [AC_MSG_ERROR([these are missing:
$mu_missing

On Debian: apt-get install$mu_missing_packages])])
])

dnl MU_SONAME(VARIABLE, LIBS, NAME, [OTHERWISE])
dnl The name under which programs that link with LIBS look for the library NAME at run time; OTHERWISE where there is
dnl only an archive here.
AC_DEFUN([MU_SONAME], [
AC_MSG_CHECKING([for the name of the shared $3])
AC_CHECK_TOOL([READELF], [readelf], [readelf])
mu_saved_LIBS=$LIBS
LIBS="-Wl,--no-as-needed $2 $LIBS"
AC_LINK_IFELSE([AC_LANG_PROGRAM([], [])],
  [$1=`"$READELF" -dW conftest$EXEEXT | sed -n 's/.*(NEEDED).*@<:@@<:@@:>@\($3\.so@<:@^@:>@@:>@*\)@:>@.*/\1/p'`])
LIBS=$mu_saved_LIBS
AC_MSG_RESULT([${$1:-none here}])
AS_IF([test -z "$$1"], [m4_ifval([$4], [$1=$4], [AC_MSG_ERROR([there is neither an archive of $3 nor a shared one])])])
])
