# Chow-Liu trees: pairwise mutual information in bounded memory, its maximum spanning tree, and the tree's centre.

"""
    MutualInformationJob(X; categories, pseudocount = 0.1, mask = nothing, columns = nothing)

Pairwise mutual information of the rows of `X`, integers 0..categories-1, `(variables, samples)`. `advance!` works through
the variables; the matrix, `(V, V)` in nats, is in `.mi` when it is done.

With pseudocount a: P_ij = (N_ij + a / C^2) / (N + a) and P_i = (N_i + a / C) / (N + a). Where `mask`, Bool of X's size, is true, a value
is missing: then all counts of a pair are of the samples in which both are seen (pairwise complete). Memory is one column-wise copy of X,
for which `columns`, UInt32 `(samples, variables)`, may be lent, and, for each thread, one table of C^2 counts (for C > $(2^12) a sorted list of the pairs instead); time is linear
in the samples for each pair, whatever C: cells without a count are never visited.
"""
mutable struct MutualInformationJob
    columns::Matrix{UInt32}       # (samples, variables); `MISSING_VALUE` where one is not seen
    categories::Int
    pseudocount::Float64
    mi::Matrix{Float64}
    entropy::Vector{Float64}      # empty where values are missing: what a variable is worth then depends on the other
    joint_terms::Vector{Float64}  # p log p of a cell that holds n samples, n = 0..N; where values are missing, not yet divided by their number
    marginal_terms::Vector{Float64}
    tables::Vector{Vector{UInt32}}
    seen::Vector{NTuple{2,Vector{UInt32}}}  # of each thread, where values are missing: those of a pair, of the samples that have both
    next::Int
    share::Share                  # of the variables whose pairs with later ones are done here: the others stay 0 in `mi`
end

const LARGEST_TABLE = 2^24  # cells of a thread's joint table: 64 MB
const MISSING_VALUE = typemax(UInt32)

function MutualInformationJob(X::AbstractMatrix{<:Integer}; categories::Integer, pseudocount::Real=0.1,
                              mask::Union{Nothing,Matrix{Bool}}=nothing, columns::Union{Nothing,Matrix{UInt32}}=nothing)
    V, N = size(X)
    N >= 1 || throw(ArgumentError("X has no samples"))
    columns === nothing || size(columns) == (N, V) ||
        throw(ArgumentError("columns: found $(reverse(size(columns))), wanted $((V, N))"))
    incomplete = mask !== nothing
    incomplete && size(mask) != (V, N) && throw(ArgumentError("mask: found $(reverse(size(mask))), wanted X's $((N, V))"))
    1 <= categories <= typemax(Int32) || throw(ArgumentError("num_cats = $categories: want 1..$(typemax(Int32))"))
    check_pseudocount(pseudocount)
    cells, threads = Float64(categories)^2, Threads.nthreads()
    table_size = cells <= LARGEST_TABLE ? Int(cells) : N
    check_memory("X, (samples, variables) = ($N, $V), num_cats = $categories", "mutual information",
                 (columns === nothing) * 4.0 * N * V + 8.0 * V * V + threads * (4 * table_size + 8.0 * categories + 8.0 * incomplete * N) + 16.0 * N)
    check_data(X, fill(Int32(categories), V), mask)
    copied = columns === nothing ? Matrix{UInt32}(undef, N, V) : columns
    entropy, terms = zeros(incomplete ? 0 : V), incomplete ? undivided_terms : shares_terms
    marginal_terms, counts = terms(N, categories, pseudocount), [zeros(Int, categories) for _ in 1:threads]
    in_pieces(1:V; steps=10 * N, threads=threads) do variables
        Threads.@threads for t in 1:threads
            for i in first(variables) + t - 1:threads:last(variables)
                copy_column!(copied, X, mask, i)
                incomplete || (entropy[i] = own_entropy(view(copied, :, i), counts[t], marginal_terms))
            end
        end
    end
    tables = [zeros(UInt32, table_size) for _ in 1:threads]
    seen = [(zeros(UInt32, incomplete ? N : 0), zeros(UInt32, incomplete ? N : 0)) for _ in 1:threads]
    return MutualInformationJob(copied, categories, pseudocount, zeros(V, V), entropy, terms(N, cells, pseudocount), marginal_terms,
                                tables, seen, 1, ALL)
end

"Copies variable `i` of X to its column."
function copy_column!(columns, X, mask, i)
    @inbounds for n in axes(X, 2)
        columns[n, i] = hidden(mask, i, n) ? MISSING_VALUE : X[i, n] % UInt32
    end
end

"The entropy of a complete column. `counts` are zeros before and after."
function own_entropy(column, counts, terms)
    @inbounds for value in column
        counts[value + 1] += 1
    end
    entropy = -sum(terms[count + 1] for count in counts)
    fill!(counts, 0)
    return entropy
end

"p log p for p = (n + a / cells) / (N + a), n = 0..N."
shares_terms(N, cells, a) = x_log_x((n + a / cells) / (N + a) for n in 0:N)

"q log q for q = n + a / cells, n = 0..N: over M samples, the sum of p log p is that of these over M + a, less log(M + a)."
undivided_terms(N, cells, a) = x_log_x(n + a / cells for n in 0:N)

x_log_x(values) = [x > 0 ? x * log(x) : 0.0 for x in values]

"Advances for about `seconds`; returns `(done, variables finished, variables)`."
function advance!(job::MutualInformationJob, seconds::Real=Inf)
    V = size(job.columns, 2)
    started = time()
    while job.next <= V
        job.next % job.share.of == job.share.number % job.share.of || (job.next += 1; continue)
        i, threads = job.next, length(job.tables)
        in_pieces(i + 1:V; steps=10 * size(job.columns, 1), threads=threads) do others
            # Static shares: pair (i, j) costs the same for every j.
            Threads.@threads for t in 1:threads
                for j in first(others) + t - 1:threads:last(others)
                    mi = isempty(job.entropy) ? complete_information(job, i, j, t) :
                         job.entropy[i] + job.entropy[j] + joint_sum(job, i, j, job.tables[t])
                    job.mi[i, j] = job.mi[j, i] = max(mi, 0.0)
                end
            end
        end
        job.next += 1
        time() - started > seconds && break
    end
    return job.next > V, job.next - 1, V
end

"Sum over all cells of P_ij log P_ij."
joint_sum(job, i, j, table) = joint_sum(job, view(job.columns, :, i), view(job.columns, :, j), table)

function joint_sum(job, x::AbstractVector, y::AbstractVector, table)
    C = job.categories
    occupied, total = C^2 <= LARGEST_TABLE ? counted(x, y, C, table, job.joint_terms) : sorted(x, y, C, job.joint_terms)
    return total + (Float64(C)^2 - occupied) * job.joint_terms[1]
end

"The mutual information of a pair over the samples in which both are seen; 0 where there are none."
function complete_information(job, i, j, t)
    x, y = complete_pair!(job.seen[t]..., job.columns, i, j)
    weight = length(x) + job.pseudocount
    weight > 0 || return 0.0
    undivided = joint_sum(job, x, y, job.tables[t]) - own_sum(job, x, job.tables[t]) - own_sum(job, y, job.tables[t])
    return undivided / weight + log(weight)
end

"The values of variables `i` and `j` in the samples that have both."
function complete_pair!(x, y, columns, i, j)
    count = 0
    @inbounds for n in axes(columns, 1)
        a, b = columns[n, i], columns[n, j]
        (a == MISSING_VALUE) | (b == MISSING_VALUE) && continue
        count += 1
        x[count], y[count] = a, b
    end
    return view(x, 1:count), view(y, 1:count)
end

"Of one variable what `joint_sum` is of two: its values are the table's diagonal."
function own_sum(job, x, table)
    C = job.categories
    occupied, total = C^2 <= LARGEST_TABLE ? counted(x, x, C, table, job.marginal_terms) : sorted(x, x, C, job.marginal_terms)
    return total + (C - occupied) * job.marginal_terms[1]
end

function counted(x, y, C, table, terms)
    @inbounds for n in eachindex(x)
        table[x[n] * C + y[n] + 1] += UInt32(1)
    end
    occupied, total = 0, 0.0
    @inbounds for n in eachindex(x)  # a second pass over the samples visits occupied cells only, and clears them
        cell = x[n] * C + y[n] + 1
        count = table[cell]
        if count > 0
            occupied += 1
            total += terms[count + 1]
            table[cell] = 0
        end
    end
    return occupied, total
end

function sorted(x, y, C, terms)
    cells = sort!([UInt64(x[n]) * C + y[n] for n in eachindex(x)])
    occupied, total, run = 0, 0.0, 0
    for n in eachindex(cells)
        run += 1
        if n == length(cells) || cells[n + 1] != cells[n]
            occupied += 1
            total += terms[run + 1]
            run = 0
        end
    end
    return occupied, total
end

"""
    chow_liu_tree(mi) -> parent

Maximum spanning tree of a symmetric `(V, V)` matrix (Prim's algorithm, Chow and Liu 1968), rooted at its centre:
`parent[i]` is the parent of variable i, 0 for the root. Ties go to the lower index.
"""
function chow_liu_tree(mi::AbstractMatrix{<:Real})
    V = size(mi, 1)
    neighbours = [Int[] for _ in 1:V]
    best, link, outside = fill(-Inf, V), zeros(Int, V), trues(V)
    next = 1
    for _ in 1:V
        outside[next] = false
        if link[next] != 0
            push!(neighbours[next], link[next])
            push!(neighbours[link[next]], next)
        end
        candidate = 0
        for i in 1:V
            outside[i] || continue
            if mi[next, i] > best[i]
                best[i], link[i] = mi[next, i], next
            end
            if candidate == 0 || best[i] > best[candidate]
                candidate = i
            end
        end
        next = candidate
        pause(10 * V)
    end
    return rooted(neighbours, centre(neighbours))
end

"Parents of all nodes of the tree when it hangs from `root`, and the nodes in the order of their distance from it."
function hang(neighbours, root)
    parent, order = zeros(Int, length(neighbours)), [root]
    for i in order, j in neighbours[i]  # `order` grows while it is walked: breadth first
        if j != parent[i]
            parent[j] = i
            push!(order, j)
        end
    end
    return parent, order
end

rooted(neighbours, root) = hang(neighbours, root)[1]

"The middle of a longest path."
function centre(neighbours)
    one_end = hang(neighbours, 1)[2][end]
    parent, order = hang(neighbours, one_end)
    path = [order[end]]
    while parent[path[end]] != 0
        push!(path, parent[path[end]])
    end
    return path[(length(path) + 1) ÷ 2]
end
