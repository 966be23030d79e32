# SPDX-License-Identifier: Apache-2.0
# bash completion for mesh-uffd.

# Processes that run under the library.
_mesh_uffd_pids() {
  mesh-uffd top --batch --count 1 2>/dev/null | sed -n 's/^ *\([0-9][0-9]*\) .*/\1/p'
}

# Where the program's name stands: behind the options. Empty: it has not come yet.
_mesh_uffd_program() {
  local i
  for ((i = 2; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
    --)
      echo $((i + 1))
      return
      ;;
    --cpu-percent | --pause-us | --decay-ms | --mappings | --huge-pages | --deny | --profile-file | --profile-signal | --library | --output | --interval | -o | -i) ((i++)) ;;
    -* | =) ;; # "=" is a word of its own here
    *)
      [[ ${COMP_WORDS[i - 1]} == '=' ]] || {
        echo "$i"
        return
      }
      ;;
    esac
  done
}

_mesh_uffd() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]} options='' program
  local library='--no-mesh --cpu-percent --pause-us --decay-ms --mappings --drop-caps --huge-pages --no-ring --check --no-abort --deny --stats --profile --profile-file --profile-signal --library --strict --quiet --help'
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W 'run doctor stat top map record help --help --version' -- "$word")
    return
  fi
  case $command in
  run) options=$library ;;
  record) options="--output --interval --compare --progress $library" ;;
  doctor) options='--help' ;;
  stat) options='--json --openmetrics --interval --count --help' ;;
  top) options='--interval --count --batch --help' ;;
  map) options='--output --help' ;;
  help)
    mapfile -t COMPREPLY < <(compgen -W 'run doctor stat top map record' -- "$word")
    return
    ;;
  *) return ;;
  esac
  if [[ $command == run || $command == record ]]; then
    program=$(_mesh_uffd_program)
    if [[ -n $program ]] && ((program <= COMP_CWORD)); then
      if declare -F _command_offset >/dev/null; then
        _command_offset "$program"
      elif ((program == COMP_CWORD)); then
        mapfile -t COMPREPLY < <(compgen -c -- "$word")
      else
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
      fi
      return
    fi
  fi
  case $before in
  --output | --library | --profile-file | -o)
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
    return
    ;;
  --deny)
    mapfile -t COMPREPLY < <(compgen -c -- "$word")
    return
    ;;
  --huge-pages)
    mapfile -t COMPREPLY < <(compgen -W '0 1 2' -- "$word")
    return
    ;;
  --cpu-percent | --pause-us | --decay-ms | --mappings | --profile-signal | --interval | --count | -i | -n) return ;;
  esac
  if [[ $word == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
  elif [[ $command == run || $command == record ]]; then
    mapfile -t COMPREPLY < <(compgen -c -- "$word")
  else
    mapfile -t COMPREPLY < <(compgen -W "$(_mesh_uffd_pids)" -- "$word")
  fi
}

complete -F _mesh_uffd mesh-uffd
