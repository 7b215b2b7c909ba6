_megabase() {
  local current="${COMP_WORDS[COMP_CWORD]}" last="${COMP_WORDS[COMP_CWORD-1]}"
  local options=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "@verbs@ --help --version" -- "$current"))
    return
  fi
  case "${COMP_WORDS[1]} $last" in
@choices@
  esac
  if [ -n "$options" ]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
    return
  fi
  case "$current" in -*)
    case "${COMP_WORDS[1]}" in
@options@
    esac ;;
  esac
  if [ -n "$options" ]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -F _megabase megabase
