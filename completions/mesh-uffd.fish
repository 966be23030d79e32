# SPDX-License-Identifier: Apache-2.0
# fish completion for mesh-uffd.

# Processes that run under the library.
function __mesh_uffd_pids
    mesh-uffd top --batch --count 1 2>/dev/null | string replace -rf '^ *([0-9]+) .* (\S+)$' '$1\t$2'
end

set -l commands run doctor stat top map record help
complete -c mesh-uffd -f
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -s h -l help -d 'Help'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -s V -l version -d 'Version'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -a run -d 'Run a program under mesh-uffd'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -a doctor -d 'What the kernel allows, and how to get more'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -a stat -d 'Figures of a running process'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -a top -d 'Live view of one process, or of all'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -a map -d 'The heap of a process as a picture'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -a record -d 'Memory of a program over time, as a picture'
complete -c mesh-uffd -n "not __fish_seen_subcommand_from $commands" -a help -d 'The help of a command'
complete -c mesh-uffd -n "__fish_seen_subcommand_from help" -a 'run doctor stat top map record'
complete -c mesh-uffd -n "__fish_seen_subcommand_from run doctor stat top map record" -s h -l help -d 'Help'
complete -c mesh-uffd -n "__fish_seen_subcommand_from doctor stat top map" -a '(__mesh_uffd_pids)'

set -l starts "__fish_seen_subcommand_from run record"
complete -c mesh-uffd -n $starts -l no-mesh -d 'No meshing'
complete -c mesh-uffd -n $starts -l cpu-percent -x -d 'Background work, percent of one core'
complete -c mesh-uffd -n $starts -l pause-us -x -d 'How long a pass may hold a barrier'
complete -c mesh-uffd -n $starts -l decay-ms -x -d 'Unused pages go back after this'
complete -c mesh-uffd -n $starts -l mappings -x -d 'Percent of vm.max_map_count for meshing'
complete -c mesh-uffd -n $starts -l drop-caps -d 'Give up CAP_SYS_PTRACE once userfaultfd is open'
complete -c mesh-uffd -n $starts -l huge-pages -x -a '0 1 2' -d 'None, as the system says, asks for them'
complete -c mesh-uffd -n $starts -l no-ring -d 'Do without io_uring'
complete -c mesh-uffd -n $starts -l check -d 'Check every free'
complete -c mesh-uffd -n $starts -l no-abort -d 'Go on after a misuse'
complete -c mesh-uffd -n $starts -l deny -x -d 'Programs that are left alone'
complete -c mesh-uffd -n $starts -l profile -d 'Heap profile'
complete -c mesh-uffd -n $starts -l profile-file -rF -d 'Where the profile goes at exit'
complete -c mesh-uffd -n $starts -l profile-signal -x -d 'Signal that writes the profile'
complete -c mesh-uffd -n $starts -l stats -d 'Statistics at exit'
complete -c mesh-uffd -n $starts -l library -r -F -d 'The library to preload'
complete -c mesh-uffd -n $starts -l strict -d 'Fail where it would warn'
complete -c mesh-uffd -n $starts -s q -l quiet -d 'No warnings'
complete -c mesh-uffd -n $starts -x -a '(__fish_complete_subcommand)'

complete -c mesh-uffd -n "__fish_seen_subcommand_from record" -s o -l output -r -F -d 'FILE.svg or FILE.csv'
complete -c mesh-uffd -n "__fish_seen_subcommand_from record" -s c -l compare -d 'Without meshing too'
complete -c mesh-uffd -n "__fish_seen_subcommand_from record" -s p -l progress -d 'Say how far it is'
complete -c mesh-uffd -n "__fish_seen_subcommand_from map" -s o -l output -r -F -d 'FILE.svg or FILE.png'
complete -c mesh-uffd -n "__fish_seen_subcommand_from stat" -s j -l json -d 'One line of JSON'
complete -c mesh-uffd -n "__fish_seen_subcommand_from stat" -s o -l openmetrics -d 'For Prometheus'
complete -c mesh-uffd -n "__fish_seen_subcommand_from stat top record" -s i -l interval -x -d 'Seconds between two looks'
complete -c mesh-uffd -n "__fish_seen_subcommand_from stat top" -s n -l count -x -d 'So often'
complete -c mesh-uffd -n "__fish_seen_subcommand_from top" -s b -l batch -d 'Plain lines'
