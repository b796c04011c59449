/**
 * A list whose members carry their own links, so that moving one to the end costs the same in a list of ten and of a
 * hundred thousand. A node is on one list at a time.
 */
export interface Node<T> {
  previous: T | undefined
  next: T | undefined
}

export interface Linked<T extends Node<T>> {
  head: T | undefined
  tail: T | undefined
  size: number
}

export const make = <T extends Node<T>>(): Linked<T> => ({ head: undefined, tail: undefined, size: 0 })

export const append = <T extends Node<T>>(list: Linked<T>, node: T): void => {
  node.previous = list.tail
  node.next = undefined
  if (list.tail === undefined) list.head = node
  else list.tail.next = node
  list.tail = node
  list.size++
}

export const remove = <T extends Node<T>>(list: Linked<T>, node: T): void => {
  if (node.previous === undefined) list.head = node.next
  else node.previous.next = node.next
  if (node.next === undefined) list.tail = node.previous
  else node.next.previous = node.previous
  node.previous = undefined
  node.next = undefined
  list.size--
}

export const toArray = <T extends Node<T>>(list: Linked<T>): Array<T> => {
  const nodes: Array<T> = []
  for (let node = list.head; node !== undefined; node = node.next) nodes.push(node)
  return nodes
}
